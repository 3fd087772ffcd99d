"""How a command line is read: one message for whatever is wrong with it, flags without a type,
empty values refused, lists split at commas.

`Command` and `Group` are typer's, with this reading. What users of other tools type is answered by
`gptcli.cli.aliases`, which is imported only when a command line is not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
import typer.core
from typer.exceptions import TyperException

from gptcli.cli.config import option
from gptcli.errors import GptError, UsageError

FREE_TEXT = ("TEXT", "PROMPT")  # metavars of values that may be empty and may hold commas


@dataclass(frozen=True, slots=True)
class Word:
    """An option with its value, or an argument, as typed."""

    name: str
    """--lr, -o; empty for an argument."""
    value: str | None
    """None for a flag, and for an option at the end of the line that lacks its value."""
    takes_value: bool | None = None
    """None for an option that the command does not have."""

    def __str__(self) -> str:
        return self.name or str(self.value)


def read_words(args: list[str], takes_value: Callable[[str], bool | None]) -> Iterator[Word]:
    """The options and arguments of a command line. `takes_value` says of an option, --name or -n,
    whether it takes a value, or None if the command has no such option."""
    rest = iter(args)
    for word in rest:
        if word == "--":
            yield from (Word("", argument) for argument in rest)
            return
        if not is_option(word):
            yield Word("", word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        takes = takes_value(name)
        if takes is None and takes_value(word[:2]) and takes_value("-" + name) is None:  # -oFILE
            yield Word(word[:2], word[2:], True)
        elif equals:
            yield Word(name, value, takes)
        else:
            yield Word(name, next(rest, None) if takes else None, takes)


def is_option(word: str) -> bool:
    """Whether a word begins as options do: "-" alone is stdin, and -1 is a number."""
    return word[:1] == "-" and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")


def option_table(command: Any, ctx: typer.Context) -> dict[str, Any]:
    """The parameter of each option, by every name it has."""
    return {
        name: param
        for param in command.get_params(ctx)
        if param.param_type_name == "option"
        for name in param.opts
    }


def check_words(command: Any, ctx: typer.Context, args: list[str]) -> None:
    """Raise UsageError if a word of the command line is not understood, a flag has a value, an
    option lacks one, or a value is empty.
    """
    options = option_table(command, ctx)
    arguments = [param for param in command.get_params(ctx) if param.param_type_name == "argument"]
    takes = {name: not param.is_flag for name, param in options.items()}
    position, before = 0, Word("", None)
    for word in read_words(args, takes.get):
        if word.name:
            if word.takes_value is None:
                raise _answer(command, ctx, args, options, word)
            if word.takes_value:
                _check_value(word, options)
            elif word.value is not None:
                raise _flag_with_value(word.name, word.value)
        else:
            if before.takes_value is False and str(word.value).lower() in ("true", "false"):
                raise _flag_with_value(before.name, str(word.value))
            if not arguments:
                raise _answer(command, ctx, args, options, word)
            argument = arguments[min(position, len(arguments) - 1)]
            if position >= len(arguments) and argument.nargs == 1:
                raise _answer(command, ctx, args, options, word)
            if word.value == "" and argument.metavar not in FREE_TEXT:
                raise _empty(argument.metavar)
            if "=" in str(word.value):
                _check_assignment(command, ctx, args, options, word)
            position += 1
        before = word


def _check_value(word: Word, options: Mapping[str, Any]) -> None:
    if word.value is None or (
        word.value.replace("_", "-") in options and word.value.startswith("--")
    ):
        instead = "" if word.value is None else f": {word.value} is an option"
        raise UsageError(
            f"needs a value{instead}",
            where=word.name,
            hint=f"{word.name} {options[word.name].metavar or 'VALUE'}",
        )
    if word.value == "" and options[word.name].metavar not in FREE_TEXT:
        raise _empty(word.name)


def _empty(where: str) -> UsageError:
    return UsageError(
        "is empty", where=where, hint="give a value; perhaps a shell variable is not set"
    )


def _flag_with_value(name: str, value: str) -> UsageError:
    hint = (
        f"leave out {name}"
        if value.lower() in ("false", "no", "off", "0")
        else f"{name} alone, without {value!r}"
    )
    return UsageError("is a flag and takes no value", where=name, hint=hint)


def _check_assignment(
    command: Any, ctx: typer.Context, args: list[str], options: Mapping[str, Any], word: Word
) -> None:
    """Raise UsageError for lr=3e-4, which is not a file."""
    from gptcli.cli.aliases import is_assignment

    if is_assignment(ctx.command_path, str(word.value), options):
        raise _answer(command, ctx, args, options, word)


def _answer(
    command: Any, ctx: typer.Context, args: list[str], options: Mapping[str, Any], word: Word
) -> UsageError:
    from gptcli.cli.aliases import answer_word

    takes = {name: not param.is_flag for name, param in options.items()}
    return answer_word(ctx.command_path, args, takes, word)


def as_gpt_error(error: TyperException, ctx: typer.Context) -> GptError:
    """What typer found wrong, as an error of ours."""
    param = getattr(error, "param", None)
    where = getattr(error, "option_name", None)
    if param is not None:
        where = param.opts[0] if param.param_type_name == "option" else param.metavar
    what = error.message.rstrip(".") or "is missing"
    return UsageError(
        what[:1].lower() + what[1:],
        where=where,
        hint=f"{ctx.command_path} --help shows usage and examples",
    )


class Reading:
    """Mixed into typer's command and group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing or (not args and getattr(self, "no_args_is_help", False)):
            return super().parse_args(ctx, args)  # type: ignore[misc]
        self.check(ctx, args)
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
                from gptcli.cli.config import split_list

                values = ctx.params[param.name]
                ctx.params[param.name] = [
                    type(value)(name) for value in values for name in split_list(str(value))
                ]
        return rest

    def check(self, ctx: Any, args: list[str]) -> None:
        check_words(self, ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; flags and arguments show no type of Python in the help."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.param_type_name == "argument" or param.is_flag:
                param.display_type_rich = _no_type
        return params


def _no_type(ctx: Any) -> str:
    return ""


class Command(Reading, typer.core.TyperCommand):
    """A subcommand."""


class Group(Reading, typer.core.TyperGroup):
    """A command of subcommands: `gpt` itself, and `gpt tokenize`."""

    def check(self, ctx: Any, args: list[str]) -> None:
        options = option_table(self, ctx)
        for word in args:
            if not is_option(word):
                return
            if word.partition("=")[0] not in options:
                from gptcli.cli.aliases import answer_early_option

                raise answer_early_option(ctx.command_path, args, list(self.commands), word)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if not ctx.resilient_parsing and args[0].replace("_", "-") not in self.commands:
            from gptcli.cli.aliases import answer_command

            raise answer_command(ctx.command_path, args, list(self.commands))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TyperException as error:
            raise as_gpt_error(error, ctx) from None
        except GptError as error:
            error.spell_parameters(option)
            raise
