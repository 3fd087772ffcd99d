"""Commands of the command line: how arguments are parsed, and how outputs are locked.

`Command` and `Group` are typer's, with one message for every error, flags without a type, no empty
values, and lists split at commas. Words of other tools are answered by `gptcli.cli.unknown_words`,
which is imported only for a command line that is not understood.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, get_args

import typer
import typer.core
from typer.exceptions import TyperException

from gptcli.cli import messages
from gptcli.cli.help_panels import panels, terminal_width
from gptcli.cli.messages import message_options
from gptcli.cli.options import SYNONYMS, Word, is_option, option, read_words
from gptcli.errors import (
    GptError,
    InputError,
    RunError,
    UsageError,
    message_of,
    package_error,
)
from gptcli.files import claim_file, contradiction, read_text, read_toml, similar
from gptcli.settings import NUMBERS
from gptcli.units import read_quantity

P = ParamSpec("P")
R = TypeVar("R")

FREE_TEXT = ("TEXT", "PROMPT")  # metavars of values that may be empty or contain commas
DASHES = "–—−‐‑"
"""Signs that an editor or a page makes of hyphens."""
WITHOUT_COMMANDS = ("gpt train", "gpt sample", "gpt eval", "gpt cost")
"""Commands whose first argument may be meant as a further command."""
SUFFIXES = ("k", "K", "m", "M", "b", "B", "g", "G", "t", "T")
FALSE_VALUES = ("false", "no", "off", "0", "none")

FLAG_VALUES = ("true", "false", "auto", "latest", "newest", "last", "none")

_locks = contextlib.ExitStack()


def hold(lock: AbstractContextManager[None]) -> None:
    """Take a lock of `gptcli.locks` until the running command ends. Raises what the lock raises."""
    _locks.enter_context(lock)


def own_output(path: Path, *, force: bool) -> None:
    """Claim an output file as `claim_file` does, and own it until the running command ends.

    Raises UsageError if it exists, and if another process writes it.
    """
    from gptcli.locks import own_file

    claim_file(path, force=force)
    hold(own_file(path))
    claim_file(path, force=force)  # another process may have finished it before


def releasing(command: Callable[P, R]) -> Callable[P, R]:
    """Return `command` wrapped to release its locks when it ends, fails or is interrupted."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _locks:
            return command(*args, **kwargs)

    return run


class Mode(NamedTuple):
    """Use of a command that one of its options selects, such as --report of `gpt train`.

    Every other option is used in it, or refused by `check_modes`.
    """

    name: str
    """Parameter of the option that selects the mode."""
    does: str
    """Work of the command in this mode, a verb and its object: "only draws runs"."""
    uses: Collection[str]
    """Other parameters that have an effect in the mode."""
    unless: Collection[str] = ()
    """Parameters of which none may be given for the mode to be selected."""
    hint: str = "leave out the one or the other"
    """Advice about an option without effect."""


def given_parameters(ctx: typer.Context) -> set[str]:
    """Return the parameters that stand on the command line, defaults left out."""
    return {
        name
        for name in ctx.params
        if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }


def check_modes(command: Any, ctx: typer.Context, modes: Sequence[Mode]) -> None:
    """Raise UsageError for an option that has no effect in the mode that the others select.

    The first of `modes` whose option is given is the mode.
    """
    given = given_parameters(ctx)
    for mode in modes:
        if mode.name in given and not given.intersection(mode.unless):
            refuse_unused(command, ctx, given, mode)
            return


def refuse_unused(command: Any, ctx: typer.Context, given: set[str], mode: Mode) -> None:
    """Raise UsageError if one of the `given` parameters has no effect in `mode`."""
    spelled = {
        param.name: param.opts[0] if param.param_type_name == "option" else param.metavar
        for param in command.get_params(ctx)
    }
    unused = [
        word
        for name, word in spelled.items()
        if name in given and name != mode.name and name not in mode.uses
    ]
    if unused:
        words = " and ".join(filter(None, (", ".join(unused[:-1]), unused[-1])))
        raise UsageError(
            f"{words} {'has' if len(unused) == 1 else 'have'} no effect with "
            f"{spelled.get(mode.name, mode.name)}, which {mode.does}",
            code="no_effect",
            hint=mode.hint,
        )


def option_table(command: Any, ctx: typer.Context) -> dict[str, Any]:
    """Return the parameter of each option, by every spelling of it."""
    return {
        name: param
        for param in command.get_params(ctx)
        if param.param_type_name == "option"
        for name in param.opts
    }


def check_words(command: Any, ctx: typer.Context, args: list[str]) -> None:
    """Check the words of a command line before typer parses them.

    Raises UsageError for an unknown option, a missing, empty or superfluous value, and an extra
    argument.
    """
    options = option_table(command, ctx)
    arguments = [param for param in command.get_params(ctx) if param.param_type_name == "argument"]
    takes = {name: not param.is_flag for name, param in options.items()}
    position, previous = 0, Word("", None)
    for word in read_words(args, takes.get):
        if word.name:
            if word.takes_value is None:
                raise _unknown_word(command, ctx, args, options, word)
            if word.takes_value:
                _check_value(word, options)
            elif word.value is not None:
                raise _flag_with_value(word.name, word.value)
        else:
            if previous.takes_value is False and _is_flag_value(str(word.value)):
                raise _flag_with_value(previous.name, str(word.value))
            is_text = position < len(arguments) and arguments[position].metavar in FREE_TEXT
            if previous.takes_value and not is_text:
                _check_single(ctx, previous, str(word.value), options)
            if not arguments:
                raise _unknown_word(command, ctx, args, options, word)
            argument = arguments[min(position, len(arguments) - 1)]
            if position >= len(arguments) and argument.nargs == 1:
                raise _unknown_word(command, ctx, args, options, word)
            if word.value == "" and argument.metavar not in FREE_TEXT:
                raise _empty(argument.metavar)
            if argument.metavar not in FREE_TEXT and _is_slip(str(word.value), options):
                raise _unknown_word(command, ctx, args, options, word)
            if previous.takes_value and str(word.value) in SUFFIXES and _ends_in_digit(previous):
                raise UsageError(
                    "a blank stands inside the number",
                    where=f"{previous.name} {previous.value} {word.value}",
                    hint=f"{previous.name} {previous.value}{word.value}",
                )
            if position == 0 and ctx.command_path in WITHOUT_COMMANDS:
                _check_further_command(ctx, args, str(word.value))
            if "=" in str(word.value):
                _check_assignment(command, ctx, args, options, word)
            position += 1
        previous = word


def _check_single(ctx: Any, option: Word, word: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for a second value behind an option: --gpus 8 16, --gpu a100 h100."""
    param = options[option.name]
    if not _is_value_of(ctx, param, word) or Path(word).exists():
        return
    if param.multiple:
        what, hint = (
            "several values are separated by commas",
            f"{option.name} {option.value},{word}",
        )
    else:
        what = f"takes one value, but {option.value} and {word} follow"
        hint = f"one at a time: {option.name} {option.value}"
    raise UsageError(what, where=option.name, hint=hint)


def _is_value_of(ctx: Any, param: Any, word: str) -> bool:
    """Tell whether a word is a value of an option of numbers or of known names."""
    if (reader := NUMBERS.get(param.name)) is not None:
        return read_quantity(word, reader.counts_in) is not None
    return any(
        found.value == word and found.type == "plain" for found in param.shell_complete(ctx, word)
    )


def repeated_options(args: list[str], options: Mapping[str, Any]) -> list[str]:
    """Return a line for each option of a single value that has several, of which the last holds.

    Spellings of one number or one path are one value.
    """
    values: dict[str, list[str]] = {}
    for word in read_words(args, lambda name: name in options and not options[name].is_flag):
        param = options.get(word.name)
        if param is not None and word.value is not None and not param.multiple:
            values.setdefault(param.opts[0], []).append(word.value)
    lines = []
    for name, (*earlier, last) in values.items():
        if others := [one for one in earlier if not _is_same(options[name], one, last)]:
            lost = " or ".join(dict.fromkeys(others))
            lines.append(f"{name} is given {len(earlier) + 1} times: {last} holds, not {lost}")
    return lines


def _is_same(param: Any, one: str, other: str) -> bool:
    """Tell whether an option has the same value in both spellings: 300B and 3e11, runs/a and
    runs/a/.
    """
    if (reader := NUMBERS.get(param.name)) is not None:
        values = {read_quantity(text, reader.counts_in) for text in (one, other)}
        return one == other or (len(values) == 1 and None not in values)
    return os.path.normpath(one) == os.path.normpath(other)


def _is_slip(word: str, options: Mapping[str, Any]) -> bool:
    """Return whether an argument is blank, begins with what an editor makes of hyphens, or is an
    option: behind --, or with the / of Windows.
    """
    if not word.strip():
        return True
    name = word.partition("=")[0]
    is_option_here = name in options or (name[:1] == "/" and "--" + name[1:] in options)
    return (word[0] in DASHES or is_option_here) and not Path(word).exists()


def _ends_in_digit(word: Word) -> bool:
    return str(word.value)[-1:].isdigit() and not Path(str(word.value)).exists()


def _check_value(word: Word, options: Mapping[str, Any]) -> None:
    """Raise UsageError if an option lacks its value, or the value is empty.

    An option or -- in place of the value is no value, unless it is a file or joined by =. Only of a
    free text, it is one unless the command has it.
    """
    is_free = options[word.name].metavar in FREE_TEXT
    is_next_option = word.value is not None and (
        word.value.startswith("--") and word.value.replace("_", "-") in options
        if is_free
        else word.lacks_value
    )
    if word.value is None or is_next_option:
        raise UsageError(
            f"needs a value, but {word.value} follows" if is_next_option else "needs a value",
            where=word.name,
            hint=f"{word.name} {options[word.name].metavar or 'VALUE'}",
        )
    if word.value == "" and not is_free:
        raise _empty(word.name)


def _empty(where: str) -> UsageError:
    return UsageError(
        "the value is empty",
        where=where,
        hint="give a value; a shell variable in the command may be unset",
    )


def _is_flag_value(word: str) -> bool:
    """Tell whether a word behind a flag is meant as its value, as other tools have it."""
    return word.lower() in FLAG_VALUES and not Path(word).exists()


def _flag_with_value(name: str, value: str) -> UsageError:
    hint = f"leave out {name}" if value.lower() in FALSE_VALUES else f"use {name} alone"
    return UsageError(f"is a flag and takes no value, but got {value!r}", where=name, hint=hint)


def _check_further_command(ctx: typer.Context, args: list[str], word: str) -> None:
    """Raise UsageError if the first argument is a command of another tool, and no file.

    A folder may be called "run": that word is left to the command.
    """
    is_path = word.lower() == "run" or Path(word).exists() or Path("runs", word).exists()
    if re.fullmatch(r"[A-Za-z_-]+", word) and not is_path:
        from gptcli.cli.unknown_words import further_command

        if (error := further_command(ctx.command_path, args, word)) is not None:
            raise error


def _check_assignment(
    command: Any, ctx: typer.Context, args: list[str], options: Mapping[str, Any], word: Word
) -> None:
    """Raise UsageError for an option spelled as an assignment, such as lr=3e-4."""
    from gptcli.cli.aliases import is_assignment

    if is_assignment(ctx.command_path, str(word.value), options):
        raise _unknown_word(command, ctx, args, options, word)


def _unknown_word(
    command: Any, ctx: typer.Context, args: list[str], options: Mapping[str, Any], word: Word
) -> UsageError:
    from gptcli.cli.unknown_words import unknown_word

    takes = {name: not param.is_flag for name, param in options.items()}
    return unknown_word(ctx.command_path, args, takes, word)


def read_config(path: Path, names: Mapping[str, Any], command: str = "gpt") -> dict[str, Any]:
    """Return the values of a TOML file whose keys are among `names`.

    Each value passes through its converter (`names[key]`, or None). Keys are the option names of
    `command`, with - or _. Raises InputError with file, line and the closest valid key.
    """
    if not path.exists():
        close = similar(path)
        raise InputError(
            "no such configuration file",
            where=path,
            hint=f"did you mean {close}?"
            if close is not None
            else "name a TOML file; a line of it is an option: seed = 1",
        )
    table, text = read_toml(path), read_text(path)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in names:
            name = SYNONYMS.get(name, name)
        where = f"{path}:{_line_of(key, text)}"
        if name not in names:
            from gptcli.cli.aliases import key_hint

            if isinstance(value, dict):
                raise InputError(
                    f"unknown table [{key}]",
                    where=where,
                    hint=f"remove this line: options stand alone, {next(iter(value), 'lr')} = ...",
                )
            raise InputError(
                f"unknown key {key!r}", where=where, hint=key_hint(command, key, names)
            )
        convert = names[name]
        try:
            values[name] = convert(value) if convert else value
        except (UsageError, ValueError, TypeError) as error:
            raise InputError(f"{key}: {message_of(error)}", where=where) from None
    return values


def _line_of(key: str, text: str) -> int:
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(key)}["']?\s*[=\].]""")
    return next(
        (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1
    )


def as_gpt_error(error: TyperException, ctx: typer.Context) -> GptError:
    """Return an error of typer as UsageError."""
    param = getattr(error, "param", None)
    where = getattr(error, "option_name", None)
    if param is not None:
        where = param.opts[0] if param.param_type_name == "option" else param.metavar
    what = error.message.rstrip(".") or "is missing"
    hint = f"{ctx.command_path} --help shows usage and examples"
    lines = [line.strip() for line in (ctx.command.help or "").splitlines()]
    if not error.message and (
        example := next(
            (line for line in lines if ctx.command_path in line and line[-1] != "."), ""
        )
    ):
        hint = f"for example: {example}\n{hint}"
    return UsageError(what[:1].lower() + what[1:], where=where, hint=hint)


class _Parsing:
    """Parsing shared by `Command` and `Group`."""

    modes: ClassVar[Sequence[Mode]] = ()
    """Modes of the command, of which the first that its options select is checked."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check and parse the arguments; split the values of repeatable options at commas."""
        is_bare = not args and getattr(self, "no_args_is_help", False)
        if is_bare and ctx.parent is not None and not ctx.resilient_parsing:
            print(ctx.get_help())
            raise UsageError(
                f"{ctx.command_path} needs a command",
                hint=f"{ctx.command_path} --help shows usage and examples",
            )
        if ctx.resilient_parsing or is_bare:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        self.check(ctx, args)
        if self.shows_help(ctx, args):
            # not by typer.echo, which takes a terminal without Unicode for a mistake
            print(ctx.get_help())
            ctx.exit()
        try:
            rest = super().parse_args(ctx, args)  # type: ignore[misc]
        except TyperException as error:
            raise as_gpt_error(error, ctx) from None
        for param in self.get_params(ctx):
            if (
                getattr(param, "multiple", False)
                and param.metavar not in FREE_TEXT
                and ctx.params.get(param.name)
            ):
                from gptcli.settings import split_list

                values = ctx.params[param.name]
                ctx.params[param.name] = [
                    type(value)(name) for value in values for name in split_list(str(value))
                ]
        if {"resume", "force"} <= given_parameters(ctx):
            raise contradiction()
        check_modes(self, ctx, self.modes)
        return rest

    def check(self, ctx: Any, args: list[str]) -> None:
        """Raise UsageError for a command line that is not understood."""
        check_words(self, ctx, args)

    def shows_help(self, ctx: Any, args: list[str]) -> bool:
        """Return whether the words ask for this command's help, before they are parsed."""
        options = option_table(self, ctx)
        words = read_words(
            args, lambda name: None if (one := options.get(name)) is None else not one.is_flag
        )
        return any(word.name in ctx.help_option_names for word in words)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help in panels; leave it to typer where they are off or the terminal narrow."""
        drawn = panels(self, ctx, terminal_width()) if self.rich_markup_mode else None  # type: ignore[attr-defined]
        if drawn is None:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        else:
            formatter.write(drawn)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; `--help` shows no Python type for flags and arguments."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            param.get_runtime_param = functools.partial(_Reading, param.type_descriptor)
            if param.param_type_name == "argument" or param.is_flag:
                param.display_type_rich = _no_type
        return params


def _no_type(ctx: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reading of a parameter's value from the words typed: text, a path, or what its parser makes.

    It stands in for typer's validators, whose library takes half the time of starting the program.
    """

    declared: Any
    """Type and parser of the parameter, as typer describes them."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or a list of values. Raises UsageError."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        kind = self.declared.annotation
        read = self.declared.parameter_info.parser
        if read is None:
            read = get_args(kind)[0] if several else kind
        return [read(each) for each in value] if several else read(value)


class Command(_Parsing, typer.core.TyperCommand):
    """Subcommand, such as `gpt train`."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*args, help=join_lines(help or ""), **options)
        self.params += message_options()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and tell of the command if they ask for it."""
        messages.reset()
        rest = super().parse_args(ctx, [*args])  # typer takes its list apart
        if not ctx.resilient_parsing:
            messages.current_messages().begin()
            for line in repeated_options(args, option_table(self, ctx)):
                from gptcli.cli.console import ConsoleEvents
                from gptcli.runtime import is_main

                if is_main():
                    ConsoleEvents().warn(line)
        return rest


def join_lines(text: str) -> str:
    """Join the lines of each paragraph that is not indented: typer breaks lines where they end."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith((" ", "\b")) else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )


@contextlib.contextmanager
def _usage_errors(ctx: Any) -> Iterator[None]:
    """Raise errors of typer as UsageError, and name options in all errors as they are typed."""
    try:
        yield
    except TyperException as error:
        raise as_gpt_error(error, ctx) from None
    except GptError as error:
        error.spell_parameters(option)
        raise


class Group(_Parsing, typer.core.TyperGroup):
    """Command with subcommands: `gpt`, and `gpt tokenize`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; show the help of a subcommand at once, if they ask for it."""
        asks = {*ctx.help_option_names} & {*args[1:]}
        if asks and not ctx.resilient_parsing and not is_option(args[0]):
            with _usage_errors(ctx):
                name, command, rest = self.resolve_command(ctx, args)
                # exits if it shows its help; otherwise --help is the value of something
                command.make_context(name, rest, parent=ctx)
        return super().parse_args(ctx, args)

    def check(self, ctx: Any, args: list[str]) -> None:
        """Raise UsageError for an unknown option before the subcommand."""
        options = option_table(self, ctx)
        for word in args:
            if not is_option(word):
                return
            if word.partition("=")[0] not in options:
                from gptcli.cli.unknown_words import early_option

                raise early_option(ctx.command_path, args, list(self.commands), word)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the subcommand. Raises UsageError for an unknown one."""
        if not ctx.resilient_parsing and args[0].replace("_", "-") not in self.commands:
            from gptcli.cli.unknown_words import unknown_command

            raise unknown_command(ctx.command_path, args, list(self.commands))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand, with errors of typer as UsageError.

        An EOFError is the end of something that was read, and a fault. Typer takes it for the end
        of typed input, and prints nothing but "Aborted."
        """
        try:
            with _usage_errors(ctx):
                return super().invoke(ctx)
        except EOFError as error:
            raise package_error(error) or RunError(
                f"data ended too early: {error}" if str(error) else "data ended too early",
                hint="a file is cut short; --debug shows which",
            ) from error
