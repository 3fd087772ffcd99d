"""Errors for words that a command line cannot have, each with the command line that can be run.

This module is imported only for a command line with such a word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from gptcli.cli.aliases import (
    COMMANDS,
    PROGRAMS,
    Alias,
    find_alias,
    is_assignment,
    nearest_option,
    options_of,
    table_of,
)
from gptcli.cli.options import Word, read_words
from gptcli.cli.translation import corrected, translate
from gptcli.errors import UsageError, close_to


def unknown_word(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word
) -> UsageError:
    """Return the error for a word of `args` that `command` does not understand.

    `takes` tells for each of its options whether it takes a value.
    """
    table = table_of(command, takes)
    if (fixed := _unquoted(command, args, takes, word)) is not None:
        return fixed
    translation = translate(command, args, takes)
    line = translation.text()
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
            return UsageError(
                f"{command} has no such option",
                where=word.name,
                hint=f"{alias.note}\n{translation.text(word.name) or help_hint}",
            )
        if alias.is_opposite:
            what = f"{command} has the opposite, {alias.target}"
        else:
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
    if line := translation.text(word.name):  # of another tool
        help_hint = f"{help_hint}; without it and what is named below:\n{line}"
    close = nearest_option(word.name, takes, table)
    if not close and (near := close_to(word.name, table)) and table[near[0]].note:
        help_hint = f"{table[near[0]].note}\n{help_hint}"
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
    if typed.lower() in PROGRAMS:
        named = next((at for at, word in enumerate(rest) if _command_of(word, commands)), None)
        if named is not None:
            target = _command_of(rest[named], commands)
            return UsageError(
                f"gpt is the program here, and its command {target.split()[0]}",
                where=typed,
                hint=_line_of(target, rest[named + 1 :]),
            )
    if (alias := _other_command(typed)) is not None:
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
    if first := next((word for word in rest if word in commands), None):
        others = [word for word in args if word != first]
        return UsageError(
            "the command comes first", where=typed, hint=shlex.join(["gpt", first, *others])
        )
    return UsageError(
        what,
        where=typed,
        hint=f"its commands are {', '.join(commands)}; gpt --help describes them",
    )


def _other_command(word: str) -> Alias | None:
    """Return the command of another tool, or its script, such as train.py; None if unknown."""
    return COMMANDS.get(Path(word).name.replace("_", "-").lower())


def _command_of(word: str, commands: list[str]) -> str:
    """Return our command, with its options, for a command here or elsewhere; empty if unknown."""
    alias = _other_command(word)
    return word if word in commands else alias.target if alias is not None else ""


def _line_of(target: str, rest: list[str]) -> str:
    """Return the command line `gpt TARGET REST`, with our names for options in REST; RUN in the
    target stands for the first argument. Words without counterpart follow, each on a line.
    """
    name, *fixed = target.split()
    command = f"gpt {name}"
    if name == "tokenize":
        return shlex.join(["gpt", name, *fixed, *rest])
    takes = options_of(command)
    takes_run = name == "train" and "RUN" in fixed
    found = translate(
        command, [*(["--report"] if takes_run else []), *rest], takes, is_foreign=True
    )
    if takes_run:
        found.options.pop("--report")
    if "RUN" in fixed:
        run, *others = found.arguments or [found.options.pop("--init-from", None) or "RUN"]
        fixed = [run if word == "RUN" else word for word in fixed]
        if fixed[0] == "--export" and run != "RUN":
            fixed[-1] = found.options.pop("--out", None) or f"{Path(run).name}.gguf"
        found.arguments = [*fixed, *others]
    elif fixed:
        found.arguments[:0] = fixed
    elif command == "gpt sample" and len(found.arguments) > 2:
        ours = shlex.split(found.line)[2:]
        return str(_unquoted_prompt(ours, takes).hint).partition("\n")[2]
    return found.text_of_any()


def further_command(command: str, args: list[str], word: str) -> UsageError | None:
    """Return the error for `gpt sample generate RUN`, with a word of another tool for a command
    behind ours; None for another word.
    """
    name = command.split()[1]
    alias = COMMANDS.get(word.lower().replace("_", "-"))
    if alias is None and word not in (name, *PROGRAMS):
        return None
    rest = list(args)
    rest.remove(word)
    is_ours = alias is not None and alias.target.split()[:1] == [name]
    target = alias.target if alias is not None and is_ours else name
    if not is_ours and options_of(command).get(f"--{word}") is False:
        target = f"{name} --{word}"
    return UsageError(f"{command} is the whole command", where=word, hint=_line_of(target, rest))


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
    lists = f"{program} --help lists commands and options"
    close = close_to(where, ("--help", "--version", "--debug") if program == "gpt" else ("--help",))
    return UsageError(
        f"{program} has no such option",
        where=where,
        hint=f"did you mean {close[0]}? {lists}" if close else lists,
    )
