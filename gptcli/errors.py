"""The errors a user can meet.

    GptError                what is wrong, where, and what to do about it
    ├── UsageError          a value that cannot be used                         exit 2
    ├── InputError          a file that is missing, damaged or does not belong  exit 2
    ├── RunError            a failure while running (disk full, lost worker)    exit 1
    └── Interrupted         stopped on request, with its work saved             exit 130

Any other exception is a bug; `gpt --debug` shows its traceback.

Messages name parameters in one way for both kinds of user: `{option:n_ctx}` in a message reads
`n_ctx` in Python and `--n-ctx` on the command line, which translates it when it prints. A flag,
`{option:force}`, reads `force=True` in Python.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

PREDICATES = frozenset(
    ["is", "has", "contains", "cannot", "was", "does", "needs", "names", "ends", "takes", "buys"]
)
"""First words of an error that continue the name of its place as a sentence."""
FLAGS = frozenset({"continues", "deterministic", "force", "greedy", "resume"})
"""Parameters that Python sets to True."""
_PARAMETER = re.compile(r"\{option:([a-z0-9_]+)\}")


class GptError(Exception):
    """One clear message: what is wrong, where, and what to do.

    `what` says what is wrong. `where` is the file, line or value it is about; by default the
    parameter `field`. `hint` says what to do. `field` is the parameter at fault ("layout") and
    `code` a stable name of the error ("layout_does_not_divide") for programs; either may be None.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        hint: str | None = None,
        field: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        if where is None and field is not None:
            where = f"{{option:{field}}}"
        self.where = None if where is None else str(where)
        self.hint = hint
        self.field = field
        self.code = code

    @property
    def statement(self) -> str:
        """Message without the hint."""
        is_line = re.search(r":\d+$", self.where or "")  # FILE:LINE: WHAT, which editors read
        is_predicate = self.what.split(" ", 1)[0] in PREDICATES
        joint = " " if is_predicate and not is_line else ": "
        return f"{self.where}{joint}{self.what}" if self.where else self.what

    @property
    def message(self) -> str:
        """Whole message, with `{option:NAME}` for the parameters that it names."""
        return "\n  ".join([self.statement, *(self.hint or "").splitlines()])

    def spell_parameters(self, spell: Callable[[str], str]) -> None:
        """Write the parameters that the error names by `spell`, such as n_ctx as --n-ctx."""
        self.what = name_parameters(self.what, spell)
        self.where = self.where and name_parameters(self.where, spell)
        self.hint = self.hint and name_parameters(self.hint, spell)

    def __str__(self) -> str:
        return name_parameters(self.message)

    def __reduce__(self) -> tuple[object, ...]:  # workers raise these across process borders
        return (_rebuild, (type(self), self.what, self.where, self.hint, self.field, self.code))


class UsageError(GptError):
    """A parameter, or a combination of parameters, that cannot be used."""

    exit_code = 2


class InputError(GptError):
    """An input file that is missing, damaged or does not belong to the others."""

    exit_code = 2


class RunError(GptError):
    """A failure while running: the disk is full, a worker was lost."""

    exit_code = 1


class Interrupted(GptError):  # noqa: N818 - the common name
    """A stop on request; finished work is saved."""

    exit_code = 130


def in_python(name: str) -> str:
    """Spell a parameter as Python does: NAME, or NAME=True for a flag."""
    return f"{name}=True" if name in FLAGS else name


def name_parameters(text: str, spell: Callable[[str], str] = in_python) -> str:
    """Replace each `{option:NAME}` in a message by `spell(NAME)`, by default as in Python."""
    return _PARAMETER.sub(lambda match: spell(match[1]), text)


def message_of(error: Exception) -> str:
    """Return the message of any error for use in another message, which may be shown later.

    Of an error of the system it is the file and the fault, without the number of the fault.
    """
    if isinstance(error, OSError) and error.strerror:
        where = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        return f"{where}{error.strerror.lower()}"
    return error.message if isinstance(error, GptError) else str(error)


def _rebuild(
    kind: type[GptError],
    what: str,
    where: str | None,
    hint: str | None,
    field: str | None,
    code: str | None,
) -> GptError:
    return kind(what, where=where, hint=hint, field=field, code=code)


MAX_LISTED = 16  # names in a hint; a reader looks for his own among more in vain
SAME_WORDS = {
    "float32": "fp32", "32": "fp32", "32-true": "fp32", "single": "fp32", "16": "fp16",
    "16-mixed": "fp16", "16-true": "fp16", "bf16-mixed": "bf16", "bf16-true": "bf16",
    "fp8-hybrid": "fp8", "transformer-engine": "fp8", "float16": "fp16", "half": "fp16",
    "bfloat16": "bf16", "mixed": "bf16", "amp": "bf16", "float8": "fp8", "yes": "on", "true": "on",
    "1": "on", "no": "off", "false": "off", "0": "off",
    "adam": "adamw", "sentence": "line", "sentences": "line", "lines": "line",
    "paragraphs": "paragraph", "txt": "text",
}  # fmt: skip
"""Words of other tools for a choice, and ours."""


def nearest(word: str, choices: Iterable[str], *, beyond: str = "", lists: str = "") -> str:
    """Return a hint that names the choices closest to `word`, or all: "did you mean 350M?".

    `beyond` says what is possible apart from them. `lists` is a command that prints a long list of
    choices, which the hint then leaves out.
    """
    choices = list(choices)
    names = [name.strip() for name in word.split(",")]
    if len(names) > 1 and (known := [name for name in names if close_to(name, choices)]):
        close = [close_to(name, choices)[0] for name in known]
        return f"one at a time: {' or '.join(dict.fromkeys(close))}"
    if close := close_to(word, choices):
        return (
            f"did you mean {' or '.join(close)}?{beyond and ' ' + beyond[0].upper() + beyond[1:]}"
        )
    if lists and len(choices) > MAX_LISTED:
        return f"{lists} lists them{beyond and '; ' + beyond}"
    return f"one of: {', '.join(choices)}{beyond and '; ' + beyond}"


def close_to(word: str, choices: Iterable[str]) -> list[str]:
    """Return up to three of `choices` that `word` may be a misspelling of, closest first.

    Case does not count, nor do the dashes that an option begins with. A word of another tool is
    its counterpart (`SAME_WORDS`).
    """
    plain = {choice: choice.lower().lstrip("-") for choice in choices}
    word = word.lower().lstrip("-")
    if (same := SAME_WORDS.get(word)) in plain.values():
        return [choice for choice, text in plain.items() if text == same]
    near = [choice for choice, text in plain.items() if _is_near(word, text)]
    return sorted(near, key=lambda choice: -_likeness(word, plain[choice]))[:3]


def _is_near(word: str, choice: str) -> bool:
    """Tell whether `word` begins or ends `choice`, is one edit away from it, or much like it, or
    names a variant of it.
    """
    if min(len(word), len(choice)) >= 3 and (choice.startswith(word) or _is_one_edit(word, choice)):
        return True
    if len(choice) >= 4 and word.startswith((f"{choice}_", f"{choice}-")):  # lambada_openai
        return True
    if len(word) >= 4 and choice.endswith(word):  # small of gpt2-small, 4090 of rtx4090
        return True
    return _likeness(word, choice) >= 0.8


def _is_one_edit(a: str, b: str) -> bool:
    """Tell whether one letter was added, left out or changed, or two neighbours were swapped."""
    same = next(
        (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    a, b = a[same:], b[same:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[1::-1] == b[:2] and a[2:] == b[2:])


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def install_hint(package: str) -> str:
    """Say how to install `package` for the Python that runs: "python -m pip install ray".

    The Python is named by its path if `python` means another, and uv installs if it has no pip.
    """
    python = sys.executable
    is_active = (
        sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ
    )  # not make's PATH alone
    if not python or (shutil.which("python") == python and is_active):
        python = "python"
    if importlib.util.find_spec("pip") is None:
        return shlex.join(["uv", "pip", "install", "--python", python, package])
    return shlex.join([python, "-m", "pip", "install", package])


def package_error(error: BaseException) -> UsageError | None:
    """Return an error about the installation if a package that gpt requires is missing, too old or
    damaged, and None if `error` has another cause.
    """
    from importlib import metadata

    if "marshal data" in str(error):  # also of a package, and of Python's own modules
        from traceback import walk_tb

        frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
        where = next((its["bytecode_path"] for its in frames if its.get("bytecode_path")), None)
        hint = "delete it; Python writes it again" if where else "delete the folders __pycache__"
        return UsageError("a compiled file of Python is damaged", where=where, hint=hint)
    try:
        listed = metadata.requires("gptcli") or []
    except metadata.PackageNotFoundError:  # run from its folder
        listed = []
    required = [text.partition(">=") for text in listed if ";" not in text]  # of no extra
    for name, _, least in required:
        package = f"{name}>={least}"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            return UsageError(
                f"the package {name} is not installed for {sys.executable}",
                hint=install_hint(package),
            )
        if _release(version) < _release(least):
            return UsageError(
                f"{name} {version} is too old: gpt needs {package}",
                hint=install_hint(package),
            )
    if not isinstance(error, ImportError) or str(error.name).partition(".")[0] == "gptcli":
        return None
    names, trace = [str(error.name).partition(".")[0]], error.__traceback__
    while trace is not None:  # of a library that it misses, the package is known by its code
        names.append(str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0])
        trace = trace.tb_next
    damaged = [name for name, _, _ in required if name in names]
    if not damaged and not isinstance(error, ModuleNotFoundError):
        return None
    what = str(error).partition("\n")[0]
    if not damaged:
        return UsageError(f"a package is missing: {what}", hint=install_hint(names[0]))
    return UsageError(
        f"the package {damaged[0]} is installed, but damaged: {what}",
        hint=install_hint(damaged[0]).replace(" install ", " install --force-reinstall --no-deps "),
    )


def _release(version: str) -> list[int]:
    """Return the numbers of a version: [2, 11] of 2.11+cpu."""
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in found[0].split(".")] if found else []
