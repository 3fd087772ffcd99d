"""Translation of whole command lines with words of other tools into command lines of `gpt`.

The words are in aliases.toml. A word without a counterpart is left out, with the reason.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gptcli.cli.aliases import (
    IMPLIED,
    OWN_VALUES,
    REPLACED,
    Alias,
    Conversion,
    batch_of_size,
    counts_steps,
    find_alias,
    is_assignment,
    is_command,
    is_model_size,
    nearest_option,
    order_of_conversion,
    table_of,
)
from gptcli.cli.options import Word, is_option, read_words
from gptcli.errors import GptError, message_of

FALSE, TRUE = ("false", "0", "no", "off"), ("true", "1", "yes", "on")
LISTS = ("--layout", "--task", "--eval-task", "--track")
"""Options whose values are joined by commas."""
CHECKPOINT = re.compile(
    r"/?(checkpoints(/.*)?|(checkpoint|step|iter)[-_]?\d+|\w+\.(pt|pth|ckpt))/?$"
)
"""End of a path that names a checkpoint in a run folder."""
FLAGS_ELSEWHERE = ("--compile",)
"""Options with a value here that are flags of other tools."""
DETERMINISTIC, SAMPLING = ("--beam", "--greedy"), ("--temperature", "--top-k", "--top-p")
WITH_ARGUMENTS = ("--report", "--export")  # options of `gpt train` with which it takes arguments


@dataclass(slots=True)
class Translation:
    """Command line of `gpt` that does what a line with words of another tool says."""

    command: str
    """Command, such as "gpt train"."""
    arguments: list[str] = field(default_factory=list)
    """Arguments, such as a run and a prompt."""
    options: dict[str, str | None] = field(default_factory=dict)
    """Options and their values; None for a flag."""
    repeated: list[str] = field(default_factory=list)
    """Further options that repeat one of `options`, and their values."""
    typed: dict[str, str] = field(default_factory=dict)
    """Words as typed that became `options`."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Words as typed that have no part in the line, and why."""

    @property
    def line(self) -> str:
        """Command line, quoted for a shell; empty if nothing is left of the words typed."""
        return shlex.join([*self.command.split(), *self.words]) if self.words else ""

    @property
    def words(self) -> list[str]:
        """Words behind the command."""
        options = [one for pair in self.options.items() for one in pair if one is not None]
        return [*self.arguments, *options, *self.repeated]

    def text(self, except_for: str = "") -> str:
        """Return the command line, and a line for each word that is left out, except `except_for`, of
        which the reader knows; empty if nothing is left of the words typed.
        """
        return self.text_of_any(except_for) if self.line else ""

    def text_of_any(self, except_for: str = "") -> str:
        """Return the same as `text`, and the command alone if nothing is left."""
        names: dict[str, list[str]] = {}  # by reason
        for name, why in self.left_out.items():
            if name != except_for:
                names.setdefault(why, []).append(name)
        others = [f"without {', '.join(those)}: {why}" for why, those in names.items()]
        return "\n".join([self.line or self.command, *others])

    def add(self, option: str, value: str | None, typed: str = "") -> None:
        """Add an option with its value, of which `typed` is the word of the line. It replaces that
        of another word, repeats that of the same, and is joined to it in a list.
        """
        if option in LISTS and option in self.options:
            self.options[option] = f"{self.options[option]},{value}"
        elif option not in self.options or option in REPLACED or self.typed[option] != typed:
            self.options[option] = value
            self.typed[option] = typed
        elif self.options[option] != value:
            self.repeated += [option] if value is None else [option, value]


def corrected(command: str, args: list[str], takes: Mapping[str, bool]) -> str:
    """Return the command line with our options, and a line for each word that is left out
    (`Translation.text`).
    """
    return translate(command, args, takes).text()


def translate(
    command: str, args: list[str], takes: Mapping[str, bool], *, is_foreign: bool = False
) -> Translation:
    """Return the translation of the words `args` of `command`.

    `takes` tells for each of its options whether it takes a value. Nothing is left if a word lacks
    its value, or if words are unknown and the line is not `is_foreign` and none of them is of
    another tool: they are misspelled then.
    """
    table = table_of(command, takes)
    own_values = OWN_VALUES.get(command, {})

    def takes_value(name: str) -> bool | None:
        if known := own_option(name, takes):
            return takes[known]
        alias = find_alias(name, table)
        if alias is None or alias.has_value or not alias.target:
            return None
        return not alias.option or takes[alias.option]

    words = list(read_words(_all_dashed(args, command, takes, takes_value), takes_value))
    known = [own_option(one.name, takes) if one.name else None for one in words]
    aliases = [
        find_alias(one.name, table) if one.name and not own else None
        for one, own in zip(words, known, strict=True)
    ]
    result = Translation(command)
    is_unknown = [
        bool(one.name) and not own and alias is None
        for one, own, alias in zip(words, known, aliases, strict=True)
    ]
    is_foreign = is_foreign or any(aliases)
    if any(one.lacks_value for one in words) or (any(is_unknown) and not is_foreign):
        return result
    named = {alias.target for alias in aliases if alias is not None}
    words, known, aliases = _with_values(command, words, known, aliases, named)
    values, reasons = _converted(words, known, aliases, own_values)
    first: list[str] = []
    last: list[str] = []
    for word, own, alias, value, reason in zip(words, known, aliases, values, reasons, strict=True):
        if not word.name:
            _add_argument(result, first, str(word.value), [str(one) for one in words])
        elif reason is not None:
            result.left_out[word.name] = reason
        elif own is not None:
            if value is not None and takes[own] is False:
                value = None if _is_true(value) else "false"
            if value == "" and own in own_values:
                result.left_out[word.name] = "it is the default"
            elif value == "false" and not takes[own]:
                result.left_out[word.name] = "it is false"
            else:
                result.add(own, value, word.name)
        elif alias is None:
            close = nearest_option(word.name, takes, table)
            result.left_out[word.name] = "unknown" + (f"; did you mean {close}?" if close else "")
        elif not alias.target:
            result.left_out[word.name] = alias.note
        elif value is not None and value.startswith("--"):
            option, _, rest = value.partition(" ")
            result.add(option, rest or None)
        elif alias.has_value or takes.get(alias.option) is False:
            _add_flag(result, word, alias, value)
        elif alias.target == "RUN":
            first[:0] = [value] if value else []
        elif not alias.option:
            last += [] if value is None else [value]
        elif word.value == "":
            result.left_out[word.name] = alias.note or "its value is missing"
        elif value is None or value.lower() in ("", "null", "none"):
            result.left_out[word.name] = "it is the default"
        else:
            result.add(alias.option, value, word.name)
    if "RUN" in named and len(first) > 1 and is_command(first[-1]):
        result.left_out[first.pop()] = f"{command} is the whole command"
    result.arguments = [*first, *last]
    if any(map(counts_steps, aliases)) and not {"--tokens", "--size"} - {*result.options}:
        # the command would choose a smaller batch for a run as short as that
        result.options.setdefault("--batch-tokens", batch_of_size(result.options))
    if not result.options.keys() & {"--size", "--d-model"}:
        _add_implied(result)
    for option in DETERMINISTIC:
        if option in result.options:
            for other in SAMPLING:
                if result.options.pop(other, None) is not None:
                    result.left_out[result.typed[other]] = f"{option} draws no samples"
    return result


def _add_implied(result: Translation) -> None:
    """Add the options whose values follow from that of another tool's word."""
    for option, word in list(result.typed.items()):
        value = result.options.get(option) or ""
        for other, (multiple, divisor) in IMPLIED.get(word.lstrip("-"), {}).items():
            if value.isdecimal():
                result.options.setdefault(other, str(max(1, int(value) * multiple // divisor)))


def _add_argument(result: Translation, first: list[str], text: str, words: list[str]) -> None:
    """Add an argument to `first`, or to what is left out of `gpt train`, which takes options."""
    if result.command != "gpt train" or any(one in WITH_ARGUMENTS for one in words):
        first.append(text)
    elif text.endswith(".py"):
        result.left_out[text] = (
            "a configuration is TOML here, an option: --config FILE.toml"
            if Path(text).parent.name in ("config", "configs")
            else "the command is its own program"
        )
    elif is_model_size(text):
        result.add("--size", text)
    else:
        result.left_out[text] = "--size names a size of the papers, --init-from a model's weights"


def _add_flag(result: Translation, word: Word, alias: Alias, value: str | None) -> None:
    """Add the flag, or option with value, that an alias stands for, unless it is switched off."""
    if value == "" and alias.convert is not None:
        result.left_out[word.name] = "it is the default"
        return
    if value is not None and not _is_true(value):
        if alias.option == "--resume" and value.lower() not in FALSE:  # from where
            result.add("--resume", None)
            if value.lower() not in ("auto", "latest", "last"):
                result.add("--out", CHECKPOINT.sub("", value) or ".")
            return
        if value.lower() in FALSE:
            result.left_out[word.name] = "it is false"
            return
    option, _, fixed = alias.target.partition(" ")
    result.add(option, fixed or None, word.name)


def _with_values(
    command: str,
    words: list[Word],
    known: list[str | None],
    aliases: list[Alias | None],
    named: set[str],
) -> tuple[list[Word], list[str | None], list[Alias | None]]:
    """Return the words with the argument behind a flag of another tool, or behind an option that is
    left out, as its value, if it is one: True, or a path for one that continues a run.

    `named` are the targets of the line's aliases.
    """
    result: list[tuple[Word, str | None, Alias | None]] = []
    for word, own, alias in zip(words, known, aliases, strict=True):
        if not word.name and result:
            option, of_gpt, of_other = result[-1]
            text = str(word.value)
            is_flag = bool(option.name) and option.takes_value is not True
            is_dropped = is_flag and of_gpt is None and (of_other is None or not of_other.target)
            if is_flag and option.value is not None and is_dropped and command == "gpt train":
                continue  # one more value of it
            if (
                is_flag
                and option.value is None
                and (
                    _is_bool(text)
                    or (of_other is not None and of_other.option == "--resume")
                    or (of_gpt is None and _is_value(text, command, is_dropped, named))
                )
            ):
                result[-1] = (replace(option, value=text), of_gpt, of_other)
                continue
        result.append((word, own, alias))
    return [one for one, _, _ in result], [one for _, one, _ in result], [one for *_, one in result]


def _converted(
    words: list[Word],
    known: list[str | None],
    aliases: list[Alias | None],
    own_values: Mapping[str, Conversion],
) -> tuple[list[str | None], list[str | None]]:
    """Return the value of each word with our option, and why it cannot be converted, or None."""
    values = [word.value for word in words]
    reasons: list[str | None] = [None] * len(words)
    given: dict[str, str | None] = {}
    for word, own, alias in zip(words, known, aliases, strict=True):
        if own is not None:
            given[own] = word.value
        elif alias is not None and alias.convert is None:
            given[alias.target or word.name.lstrip("-")] = word.value
        elif alias is not None:
            given[word.name.lstrip("-")] = word.value
    for index in sorted(range(len(words)), key=lambda index: order_of_conversion(aliases[index])):
        word, own, alias = words[index], known[index], aliases[index]
        convert = own_values.get(own) if own else alias.convert if alias else None
        if convert is None or (word.value is None and own):
            continue
        note = (alias.note if alias else "") or "its value has no counterpart"
        try:
            values[index] = convert(str(word.value or ""), given)
        except KeyError as error:
            reasons[index] = f"{note}; its value cannot be converted without {error.args[0]}"
        except (GptError, OSError) as error:
            why = message_of(error).partition("\n")[0]
            reasons[index] = f"{note}; {why}" if why and why not in note else note
        if reasons[index]:
            values[index] = None
        elif alias is not None and not str(values[index]).startswith("--"):
            given[alias.target] = values[index]
    return values, reasons


def _is_bool(text: str) -> bool:
    return text.lower() in (*FALSE, *TRUE)


def _is_true(text: str) -> bool:
    return text.lower() in TRUE


def _is_value(text: str, command: str, is_dropped: bool, named: set[str]) -> bool:
    """Tell whether a word after an option that takes no value here is its value, no argument."""
    if command == "gpt train":
        return True
    return is_dropped and (
        re.fullmatch(r"[\d.,e+-]+[kKmMbB]?|\w+=.*", text) is not None
        or (bool(named & {"RUN", "INPUT"}) and not Path(text).exists())
    )


def own_option(name: str, takes: Mapping[str, bool]) -> str | None:
    """Return the option that is meant by --name, -name or --group.name; None if there is none."""
    for candidate in (name, "-" + name, "--" + name.rpartition(".")[2].lstrip("-")):
        if candidate in takes:
            return candidate
    return None


def _all_dashed(
    args: list[str],
    command: str,
    takes: Mapping[str, bool],
    takes_value: Callable[[str], bool | None],
) -> list[str]:
    """Return the words, each name=value that is not the value of an option as --name=value, and an
    option of another tool without its value as --name=.
    """
    words: list[str] = []
    is_value = False
    for at, word in enumerate(args):
        words.append(word if is_value else _dashed(word, command, takes))
        is_value = is_option(word) and "=" not in word and bool(takes_value(word.replace("_", "-")))
        follows = args[at + 1] if at + 1 < len(args) else "--"
        if is_value and is_option(follows) and not Path(follows).exists():
            own = own_option(word.replace("_", "-"), takes)
            if own is None or own in FLAGS_ELSEWHERE:
                words[-1] += "=" if own is None else "=true"
                is_value = False
    return words


def _dashed(word: str, command: str, takes: Mapping[str, bool]) -> str:
    """Return name=value as --name=value, and any other word unchanged."""
    if not is_option(word) and "=" in word and is_assignment(command, word, takes):
        return "--" + word.lstrip("+")
    return word
