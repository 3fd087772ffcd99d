"""The form that every kind of evaluation item takes before it is turned into tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item in the form of the task's prompt, without its shots."""

    id: str
    """Stable: the data's own id, or file:line."""
    prompt: str
    """What stands before the answer."""
    choices: tuple[str, ...] = ()
    """Multiple choice: what may follow the prompt, spaces included."""
    contexts: tuple[str, ...] = ()
    """Partial evaluation (Winograd, Winogrande): one context for each choice; `target` follows them
    all.
    """
    target: str = ""
    """Last word, running text, or the common continuation of `contexts`."""
    gold: tuple[int, ...] = ()
    """Indexes of the right choices; several may be right."""
    answers: tuple[str, ...] = ()
    """Free form: the accepted answers; the first is the one that shots show. Multiple choice: the
    bare choices.
    """
    unconditional: str = ""
    """The prompt of GPT-3's normalisation, "Answer:" or "A:"."""
    group: str = ""
    """Items scored together: a MultiRC question, a ReCoRD passage, a CoQA story."""
    shot: str = ""
    """This item as a solved example, where that is not its prompt and right answer."""
