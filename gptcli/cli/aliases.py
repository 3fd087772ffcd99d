"""Options and commands of other tools, and their names here.

The words are in aliases.toml. An alias is not accepted silently, because it can mean something
else: a batch there counts sequences, here tokens. The error names our option and, if every value
can be converted, the corrected command line. This module is imported only for a command line or
configuration file with an unknown word.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.options import Word, is_option, read_words
from gptcli.errors import GptError, UsageError, close_to
from gptcli.settings import count, quantity

Given = Mapping[str, str | None]
"""Values of a command line by the names of our options; aliases are already translated."""
Conversion = Callable[[str, Given], str]
"""Conversion of the value typed, given the rest of the command line.

Raises GptError or KeyError if the command line does not determine the value.
"""


@dataclass(frozen=True, slots=True)
class Alias:
    """Word of another tool."""

    target: str
    """Our option (--lr), option with value (--precision bf16) or argument (RUN); empty if none."""
    note: str = ""
    """Difference to our option, or the reason why there is none."""
    convert: Conversion | None = None
    """Conversion of the value; None if it is the same here."""

    @property
    def option(self) -> str:
        """Name of our option; empty if the target is an argument or nothing."""
        return self.target.split()[0] if self.target.startswith("-") else ""

    @property
    def has_value(self) -> bool:
        """True if the target includes the value, so that a value typed is dropped."""
        return " " in self.target


def _batch_tokens(value: str, given: Given) -> str:
    return str(count(value) * _context(given))


def _accumulated_batch_tokens(value: str, given: Given) -> str:
    """Return the tokens of a step of nanoGPT, whose batch_size counts those of one micro-batch."""
    return str(count(value) * _accumulation(given) * _context(given))


def _batch_tokens_of_accumulation(value: str, given: Given) -> str:
    if "--batch-tokens" in given:  # typed, or the accumulation is in it already
        return str(count(given["--batch-tokens"] or ""))
    return str(count(value) * count(given["--micro-batch"] or "") * _context(given))


def _eval_tokens_of_batches(value: str, given: Given) -> str:
    return str(count(value) * (count(given["--batch-tokens"] or "") // _accumulation(given)))


def _tokens_of_steps(value: str, given: Given) -> str:
    if "--batch-tokens" in given:
        return str(count(value) * count(given["--batch-tokens"] or ""))
    return str(count(value) * _paper(given).batch_tokens)


def _tokens_of_epochs(value: str, given: Given) -> str:
    from gptcli.shards.manifest import read_manifest

    tokens = read_manifest(Path(given.get("--data") or "shards")).tokens("train")
    return str(round(quantity(value) * tokens))


def _share_of_tokens(value: str, given: Given) -> str:
    return str(round(quantity(value) * count(given["--tokens"] or "")))


def _share_of_lr(value: str, given: Given) -> str:
    return f"{quantity(value) / quantity(given['--lr'] or ''):.6g}"


def _hours_of_days(value: str, given: Given) -> str:
    return f"{24 * quantity(value):g}"


def _precision(value: str, given: Given) -> str:
    known = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
    return {**known, "float": "fp32"}.get(value.lower(), value)


def _optimizer(value: str, given: Given) -> str:
    return "adamw" if value.lower().startswith("adam") else value


def _schedule(value: str, given: Given) -> str:
    known = {"warmup-stable-decay": "wsd", "constant-with-warmup": "constant"}
    return known.get(value.lower().replace("_", "-"), value.lower())


def _kind(value: str, given: Given) -> str:
    return "gpt2" if "bpe" in value.lower() or "byte" in value.lower() else value


def _model_of_arguments(value: str, given: Given) -> str:
    """Return the model of lm-evaluation-harness's --model_args: pretrained=MODEL,dtype=..."""
    pairs = dict(part.partition("=")[::2] for part in value.split(","))
    return pairs.get("pretrained") or pairs.get("path") or value


def _model_unless_kind(value: str, given: Given) -> str:
    """Return a model, or "" for a kind of lm-evaluation-harness, or nanoGPT's word for a run."""
    return (
        ""
        if value in ("resume", "hf", "hf-auto", "hf-causal", "huggingface", "vllm", "nemo_lm")
        else value
    )


def _no_conversion(value: str, given: Given) -> str:
    raise UsageError("the two options count different things")


def _axis(name: str) -> Conversion:
    return lambda value, given: f"{name}={count(value)}"


def _context(given: Given) -> int:
    text = given.get("--n-ctx")
    return count(text) if text else int(_paper(given).n_ctx)


def _accumulation(given: Given) -> int:
    """Return the micro-batches of a step by the option of another tool; 1 if there is none."""
    return next((count(given[word] or "") for word in ACCUMULATION if word in given), 1)


def _paper(given: Given) -> Any:
    from gptcli.model.config import find_size

    return find_size(given["--size"] or "")


CONVERSIONS: dict[str, Conversion] = {
    **{
        convert.__name__.removeprefix("_"): convert
        for convert in (
            _batch_tokens, _accumulated_batch_tokens, _batch_tokens_of_accumulation,
            _eval_tokens_of_batches, _tokens_of_steps, _tokens_of_epochs, _share_of_tokens, _share_of_lr,
            _hours_of_days, _precision, _optimizer, _schedule, _kind, _model_of_arguments,
            _model_unless_kind, _no_conversion,
        )
    },
    **{f"axis {name}": _axis(name) for name in ("dp", "tp", "pp")},
}  # fmt: skip


def _table(*names: str) -> dict[str, Alias]:
    """Return the aliases of these tables of aliases.toml, by word."""
    found = {}
    for words, target, *rest in (row for name in names for row in TABLES[name]):
        note, conversion = (*rest, "", "")[:2]
        alias = Alias(target, note, CONVERSIONS[conversion] if conversion else None)
        found.update(dict.fromkeys(words.split(), alias))
    return found


REPLACED = ("--lr", "--batch-tokens", "--tokens")
"""Options whose value is replaced if an alias says it again, in the order in which values are
converted: a length in steps needs the tokens of a batch, a warm-up in shares those of the run.
"""
TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ACCUMULATION = tuple(TABLES["accumulation"][0][0].split())
EVERYWHERE = _table("everywhere")
OF_COMMAND: dict[str, dict[str, Alias]] = {
    "gpt train": _table("shape", "train", "accumulation"),
    "gpt sample": _table("sample"),
    "gpt eval": _table("eval"),
    "gpt cost": _table("shape", "cost"),
    "gpt build-shards": _table("build-shards"),
    "gpt tokenize train": _table("tokenize-train"),
    "gpt tokenize encode": _table("tokenize-ids"),
    "gpt tokenize decode": _table("tokenize-ids"),
}
COMMANDS = _table("commands")
"""Commands of other tools, and our command lines."""


def table_of(command: str, options: Iterable[str]) -> dict[str, Alias]:
    """Return the aliases of a command, such as "gpt train", that has these options."""
    options = set(options)
    everywhere = {
        word: alias
        for word, alias in EVERYWHERE.items()
        if not alias.option or alias.option in options
    }
    return {
        word: alias
        for word, alias in (everywhere | OF_COMMAND.get(command, {})).items()
        if "--" + word not in options
    }


def find_alias(word: str, table: Mapping[str, Alias]) -> Alias | None:
    """Return the alias of a word, or None.

    Dashes, underscores and a prefix such as train. or --training. do not matter.
    """
    bare = word.lstrip("-").replace("_", "-").lower()
    return table.get(bare) or table.get(bare.rpartition(".")[2])


def is_assignment(command: str, word: str, options: Mapping[str, Any]) -> bool:
    """Tell whether an argument is an option spelled name=value, and not a file."""
    name = "--" + word.partition("=")[0].lstrip("+").replace("_", "-")
    is_known = (
        name in options
        or "--" + name.rpartition(".")[2] in options
        or find_alias(name, table_of(command, options)) is not None
    )
    return is_known and not Path(word).exists()


def unknown_word(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word
) -> UsageError:
    """Return the error for a word of `args` that `command` does not understand.

    `takes` tells for each of its options whether it takes a value.
    """
    table = table_of(command, takes)
    if (fixed := _unquoted(command, args, takes, word)) is not None:
        return fixed
    line = corrected(command, args, takes)
    help_hint = f"{command} --help lists all options"
    if not word.name:
        return _extra_argument(command, args, takes, word, line)
    alias = find_alias(word.name, table)
    two_dashes = "-" + word.name
    if len(word.name) > 2 and not word.name.startswith("--") and (two_dashes in takes or alias):
        name = two_dashes
        if alias is not None and two_dashes not in takes:
            name = alias.target or two_dashes
        return UsageError(
            "the name of an option begins with two dashes",
            where=word.name,
            hint=line or f"{name}; {help_hint}",
        )
    if alias is not None:
        if not alias.target:
            line, left_out = _translated(command, args, takes)
            left_out.pop(word.name, None)
            others = [f"without {name}: {why}" for name, why in left_out.items()]
            if line in ("", command):
                line, others = help_hint, []
            return UsageError(
                f"{command} has no such option",
                where=word.name,
                hint="\n".join([alias.note, line, *others]),
            )
        verb = "calls this" if alias.option else "takes it as"
        what = f"{command} {verb} {alias.target}"
        return UsageError(
            f"{what}; {alias.note}" if alias.note else what,
            where=word.name,
            hint=line or help_hint,
        )
    short = "--" + word.name.rpartition(".")[2].lstrip("-")
    if short in takes:
        return UsageError(f"{command} calls this {short}", where=word.name, hint=line or help_hint)
    for prefix in ("--no-", "--disable-"):
        flag = "--" + word.name.removeprefix(prefix)
        if word.name.startswith(prefix) and takes.get(flag) is False:
            return UsageError(
                "flags are off by default",
                where=word.name,
                hint=f"leave out {word.name}; {flag} turns it on",
            )
    close = _nearest_option(word.name, takes, table)
    return UsageError(
        f"{command} has no such option",
        where=word.name,
        hint=f"did you mean {close}? {help_hint}" if close else help_hint,
    )


def _unquoted(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word
) -> UsageError | None:
    """Return the error for an option with its value in one word: "--size gpt2", --size:gpt2, /size;
    or for options behind `--`; None for another word.
    """
    typed = str(word)
    found = re.fullmatch(r"(--[a-zA-Z_-]+)(\s+|:)(.*)", typed) or re.fullmatch(
        r"/([a-zA-Z_-]+)()()", typed
    )
    if found is None:
        return None
    name = "--" + found[1].lstrip("-").replace("_", "-")
    if name not in takes:
        return None
    if not word.name and "--" in args and not found[2] and typed.startswith("--"):
        return None
    rest = [name, found[3]] if found[2] else [name]
    at = args.index(typed) if typed in args else len(args)
    words = [*args[:at], *rest, *args[at + 1 :]]
    why = {
        "": "an option begins with two dashes here",
        ":": "a blank or = stands between an option and its value",
    }.get(found[2], "the quotes join an option and its value")
    line = corrected(command, words, takes) or shlex.join([*command.split(), *words])
    return UsageError(why, where=typed, hint=line)


def _nearest_option(name: str, takes: Mapping[str, bool], table: Mapping[str, Alias]) -> str:
    """Return our option nearest to a misspelled option or alias; empty if none is near."""
    choices = {option: option for option in takes} | {
        "--" + word: alias.option for word, alias in table.items() if alias.option
    }
    close = close_to(name, choices)
    return choices[close[0]] if close else ""


def _extra_argument(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word, line: str
) -> UsageError:
    """Return the error for one argument too many, or an option without dashes."""
    value = str(word.value)
    from gptcli.cli.command import DASHES  # which is built on this module

    if value[:1] in DASHES and value.lstrip(DASHES):
        name = "--" + value.lstrip(DASHES)
        line = corrected(command, [name if one == value else one for one in args], takes)
        return UsageError(
            f"begins with {value[0]!r}, which is no hyphen",
            where=value,
            hint=line or f"write {name}, with two hyphens; {command} --help lists all options",
        )
    if not value.strip():
        return UsageError(
            "a blank is an argument of its own here",
            where=repr(value),
            hint="remove it; one after the \\ at the end of a line would be such a blank",
        )
    if value.startswith("--") and "--" in args:
        words = [one for one in args if one != "--"]
        return UsageError(
            "options behind -- are arguments",
            where=value,
            hint=f"leave out the --:\n{shlex.join([*command.split(), *words])}",
        )
    if is_assignment(command, value, takes):
        return UsageError(
            "the name of an option begins with two dashes",
            where=value,
            hint=line or f"--{value}; {command} --help lists all options",
        )
    if command == "gpt sample":
        return _unquoted_prompt(args, takes)
    return UsageError(
        "unexpected argument", where=value, hint=f"{command} --help shows usage and examples"
    )


def _unquoted_prompt(args: list[str], takes: Mapping[str, bool]) -> UsageError:
    """Return the error for `gpt sample RUN Once upon a time`, with or without the model."""
    words = list(read_words(args, takes.get))
    run, *prompt = [str(one.value) for one in words if not one.name]
    if any(one.name == "--serve" for one in words):
        return UsageError(
            "--serve takes one run, or two to compare",
            where=prompt[1],
            hint="the prompt is written in the page, or is part of a request",
        )
    what = "the prompt must be one argument"
    if not Path(run).exists() and not re.search(r"[/\\0-9]", run):  # no path, and no model's name
        run, prompt, what = "RUN", [run, *prompt], f"{what}, after the model"
    options = [
        part for one in words if one.name for part in (one.name, one.value) if part is not None
    ]
    quoted = shlex.join(["gpt", "sample", run, " ".join(prompt), *options])
    return UsageError(what, where=prompt[1] or "PROMPT", hint=f"quote it:\n{quoted}")


def corrected(command: str, args: list[str], takes: Mapping[str, bool]) -> str:
    """Return the command line with our options, quoted for a shell, and a line for each option of
    another tool that is left out; empty if the line has an unknown word, or nothing is left of it.
    """
    line, left_out = _translated(command, args, takes)
    if line == command and left_out:
        return ""
    return "\n".join([line, *(f"without {word}: {why}" for word, why in left_out.items())])


def _translated(
    command: str, args: list[str], takes: Mapping[str, bool]
) -> tuple[str, dict[str, str]]:
    """Return the command line with our options, and why options as typed have no part in it.

    The line is empty if it would have an unknown word, or lack a value.
    """
    table = table_of(command, takes)

    def takes_value(name: str) -> bool | None:
        if known := _option_for(name, takes):
            return takes[known]
        alias = find_alias(name, table)
        if alias is None or alias.has_value or not alias.target:
            return None
        return not alias.option or takes[alias.option]

    words = list(read_words(_all_dashed(args, command, takes, takes_value), takes_value))
    aliases = [find_alias(one.name, table) if one.name else None for one in words]
    if any(
        one.lacks_value or (one.name and alias is None and not _option_for(one.name, takes))
        for one, alias in zip(words, aliases, strict=True)
    ):
        return "", {}
    values = _converted(words, aliases, takes)
    options: list[str] = []
    first: list[str] = []
    last: list[str] = []
    left_out: dict[str, str] = {}
    dropped = False  # a value such as True after the alias of a flag is dropped too
    for word, alias, value in zip(words, aliases, values, strict=True):
        if not word.name:
            text = str(word.value)
            if command == "gpt train" and text.endswith(".py"):
                left_out[text] = "a configuration is TOML here, an option: --config FILE.toml"
            elif dropped and options[-1:] == ["--resume"] and not _is_bool(text):  # from where
                options += ["--out", text]
            elif not dropped or not (_is_bool(text) or (left_out and _is_value(text, command))):
                first.append(text)
            dropped = False
            continue
        if known := _option_for(word.name, takes):
            if known == "--compile":  # of Python's settings
                value = {"true": "on", "false": "off"}.get(str(value).lower(), value)
            options += [known] if value is None or not takes[known] else [known, value]
            continue
        assert alias is not None  # every other name is an option
        if not alias.target:
            left_out[word.name] = alias.note
            dropped = word.value is None
        elif alias.has_value or takes.get(alias.option) is False:
            options += alias.target.split()
            dropped = True
        elif value is None and alias.option in REPLACED:  # without it, the run would be another
            return "", {}
        elif value is None:
            left_out[word.name] = alias.note or f"its value has no counterpart in {alias.target}"
        elif alias.target == "RUN":
            first[:0] = [value] if value else []
        elif not alias.option:
            last.append(value)
        elif alias.option == "--layout" and "--layout" in options:
            options[options.index("--layout") + 1] += f",{value}"
        elif alias.option in options and alias.option in REPLACED:
            options[options.index(alias.option) + 1] = value
        else:
            options += [alias.option, value]
    return shlex.join([*command.split(), *first, *last, *options]), left_out


def _converted(
    words: list[Word], aliases: list[Alias | None], takes: Mapping[str, bool]
) -> list[str | None]:
    """Return the value of each word with our option; None if it cannot be converted."""
    values = [word.value for word in words]
    given: dict[str, str | None] = {}
    for word, alias in zip(words, aliases, strict=True):
        if known := _option_for(word.name, takes) if word.name else None:
            given[known] = word.value
        elif alias is not None and alias.convert is None:
            given[alias.target or word.name.lstrip("-")] = word.value
        elif alias is not None:
            given[word.name.lstrip("-")] = word.value

    def order(index: int) -> tuple[int, bool]:
        alias = aliases[index]
        if alias is None or alias.option not in REPLACED:
            return len(REPLACED), False
        return REPLACED.index(alias.option), alias.convert is _batch_tokens_of_accumulation

    for index in sorted(range(len(words)), key=order):
        word, alias = words[index], aliases[index]
        if alias is None or alias.convert is None or _option_for(word.name, takes):
            continue
        try:
            values[index] = alias.convert(str(word.value), given)
        except (GptError, KeyError, OSError):
            values[index] = None
        given[alias.target] = values[index]
    return values


def _is_bool(text: str) -> bool:
    return text.lower() in ("true", "false", "1", "0")


def _is_value(text: str, command: str) -> bool:
    """Tell whether a word after an option that is left out is its value, not an argument."""
    return command == "gpt train" or re.fullmatch(r"[\d.,e+-]+[kKmMbB]?", text) is not None


def _option_for(name: str, takes: Mapping[str, bool]) -> str | None:
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
    """Return the words, each name=value that is not the value of an option as --name=value."""
    words: list[str] = []
    is_value = False
    for word in args:
        words.append(word if is_value else _dashed(word, command, takes))
        is_value = is_option(word) and "=" not in word and bool(takes_value(word))
    return words


def _dashed(word: str, command: str, takes: Mapping[str, bool]) -> str:
    """Return name=value as --name=value, and any other word unchanged."""
    if not is_option(word) and "=" in word and is_assignment(command, word, takes):
        return "--" + word.lstrip("+")
    return word


def unknown_command(program: str, args: list[str], commands: list[str]) -> UsageError:
    """Return the error for a word that is not a command of `program`."""
    typed, rest = args[0], args[1:]
    what = f"{program} has no such command"
    if typed == "gpt" and rest:
        return UsageError(
            "the name of the program stands once", where="gpt gpt", hint=shlex.join(["gpt", *rest])
        )
    if " " in typed and typed.split()[0].replace("_", "-") in commands:
        line = f"{program} {typed}{' ' if rest else ''}{shlex.join(rest)}"
        return UsageError(
            "the quotes join several words", where=repr(typed), hint=f"leave them out:\n{line}"
        )
    if program != "gpt":
        close = close_to(typed, commands)
        lead = f"did you mean {close[0]}?" if close else f"its commands are {', '.join(commands)}"
        if not close and not (Path(typed).suffix or Path(typed).exists()):
            return UsageError(what, where=typed, hint=f"{lead}; {program} --help describes them")
        words = [close[0], *rest] if close else [commands[0], *args]
        line = shlex.join([*program.split(), *words])
        return UsageError(what, where=typed, hint=f"{lead}{'' if close else ':'}\n{line}")
    if (alias := COMMANDS.get(typed.replace("_", "-").lower())) is not None:
        if not alias.target:
            hint = f"{alias.note}\ngpt --help lists the commands"
            return UsageError(what, where=typed, hint=hint)
        what = f"gpt calls this {alias.target.split()[0]}"
        return UsageError(
            f"{what}; {alias.note}" if alias.note else what,
            where=typed,
            hint=_line_of(alias.target, rest),
        )
    choices = {name: name for name in commands} | {
        word: alias.target.split()[0] for word, alias in COMMANDS.items() if alias.target
    }
    if close := close_to(typed, choices):
        meant = choices[close[0]]
        hint = f"did you mean {meant}?\n{shlex.join(['gpt', meant, *rest])}"
        return UsageError(what, where=typed, hint=hint)
    if Path(typed).exists():
        is_model = Path(typed).is_dir() or Path(typed).suffix in (".pt", ".pth", ".bin")
        line = shlex.join(["gpt", "sample" if is_model else "build-shards", *args])
        return UsageError(what, where=typed, hint=f"the command comes first, for example\n{line}")
    if named := next((word for word in rest if word in commands), None):
        others = [word for word in args if word != named]
        return UsageError(
            "the command comes first", where=typed, hint=shlex.join(["gpt", named, *others])
        )
    return UsageError(
        what,
        where=typed,
        hint=f"its commands are {', '.join(commands)}; gpt --help describes them",
    )


def _line_of(target: str, rest: list[str]) -> str:
    """Return the command line `gpt TARGET REST`, with our names for options in REST; RUN in the
    target stands for the first argument.
    """
    if "RUN" in target.split():
        run = next((word for word in rest if not is_option(word)), "RUN")
        named = [run if word == "RUN" else word for word in target.split()]
        if target.startswith("train --export") and run != "RUN":
            named[-1] = f"{Path(run).name}.gguf"
        return shlex.join(["gpt", *named])
    words = [*target.split(), *rest]
    if target not in ("sample", "train", "eval", "cost", "build-shards"):
        return shlex.join(["gpt", *words])
    command = f"gpt {words[0]}"
    takes = _options_of(words[0])
    line = corrected(command, words[1:], takes) or shlex.join(["gpt", *words])
    ours = shlex.split(line.partition("\n")[0])[2:]
    if words[0] == "sample" and sum(not word.name for word in read_words(ours, takes.get)) > 2:
        return str(_unquoted_prompt(ours, takes).hint).partition("\n")[2]
    return line


def _options_of(command: str) -> dict[str, bool]:
    """Return the options of one of gpt's commands, and whether each takes a value."""
    import typer.main

    from gptcli.cli import build_app  # which is built on this module
    from gptcli.cli.command import option_table

    found: Any = typer.main.get_command(build_app([command]))
    found = found.commands[command]
    ctx = found.context_class(found, info_name=command)
    return {name: not param.is_flag for name, param in option_table(found, ctx).items()}


def early_option(program: str, args: list[str], commands: list[str], option: str) -> UsageError:
    """Return the error for an option in front of the command."""
    where = option.partition("=")[0]
    if where in ("-v", "-V"):
        return UsageError(
            f"{program} has no such option",
            where=where,
            hint=f"{program} --version prints the version",
        )
    if named := next((word for word in args if word in commands), None):
        at = args.index(named)
        line = shlex.join([*program.split(), named, *args[:at], *args[at + 1 :]])
        return UsageError("options come after the command", where=where, hint=line)
    return UsageError(
        f"{program} has no such option",
        where=where,
        hint=f"{program} --help lists commands and options",
    )


def key_hint(command: str, key: str, names: Iterable[str]) -> str:
    """Return the hint for an unknown key of a configuration file of `command`.

    `names` are the keys that the file may have.
    """
    names = list(names)
    takes = {"--" + name.replace("_", "-"): True for name in names}
    table = table_of(command, takes)
    name = key.replace("_", "-")
    if (alias := find_alias(name, table)) is not None and alias.option in takes:
        key, _, value = alias.target.removeprefix("--").replace("-", "_").partition(" ")
        target = f'{key} = "{value}"' if value else key
        return f"it is called {target} here" + (f": {alias.note}" if alias.note else "")
    if alias is not None and alias.note:
        return alias.note
    if command.startswith("gpt ") and "--" + name in _options_of(command.removeprefix("gpt ")):
        return f"it is an option of the command line alone: --{name}"
    if (close := _nearest_option("--" + name, takes, table)) in takes:
        return f"did you mean {close.replace('--', '').replace('-', '_')}?"
    return f"one of: {', '.join(names)}"
