"""The `gpt` command: which file holds which subcommand, and how errors become messages and exit
codes.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

import typer

from gptcli import __version__
from gptcli.cli.command import Group
from gptcli.errors import GptError

COMMANDS = {  # subcommand: the module of gptcli.cli that holds it, and what `gpt --help` says of it
    "tokenize": ("tokenize", "Learn a byte-level BPE; turn text into ids and back."),
    "build-shards": ("build_shards", "Turn documents into shuffled, checksummed token shards."),
    "train": ("train", "Train a GPT on shards with the paper's recipe."),
    "sample": ("sample", "Write text with a trained model."),
    "eval": ("eval", "Measure loss, perplexity and bits per byte, or score a task."),
    "cost": ("cost", "Price a model: parameters, FLOPs, GPU-years, dollars."),
}
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
NO_HOME = "Could not determine home directory"  # what pathlib raises a RuntimeError with


def build_app(argv: list[str]) -> typer.Typer:
    """The command line for these arguments. A subcommand's file is imported only where it is named,
    or its options are completed.
    """
    named = next((_hyphens(word) for word in argv if not word.startswith("-")), None)
    app = typer.Typer(
        name="gpt",
        cls=Group,
        help="Rebuild the systems of the GPT papers: raw text to a trained model, its samples, its scores and its cost.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _hyphens},
        # the list of commands needs no panels, and answers in half the time
        rich_markup_mode="rich" if named in COMMANDS else None,
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    completing = "_GPT_COMPLETE" in os.environ
    for command, (module, text) in COMMANDS.items():
        if command == named or completing:
            importlib.import_module(f"gptcli.cli.{module}").register(app)
        else:
            app.command(command, help=text)(_not_loaded)
    return app


def _hyphens(name: str) -> str:
    """--n_layer and build_shards are --n-layer and build-shards."""
    return name.replace("_", "-")


def reworded(argv: list[str]) -> list[str]:
    """`gpt help [COMMAND]` as --help, `gpt version` as --version."""
    if argv[:1] == ["help"]:
        return [*(word for word in argv[1:] if word not in ("help", "--help", "-h")), "--help"]
    return ["--version"] if argv[:1] == ["version"] else argv


def _not_loaded() -> None:
    """Stands in the list of commands for one whose file this command line does not need."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gpt {__version__}")
        raise typer.Exit()


def root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", is_eager=True, callback=_version
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed while running, 2 bad usage or input, 130
    interrupted.
    """
    from gptcli.cli.console import set_up_streams

    set_up_streams()
    argv = reworded(sys.argv[1:])
    if "--debug" in argv:  # wherever it stands on the line
        argv = [word for word in argv if word != "--debug"]
        build_app(argv)(argv, prog_name="gpt")
        return
    try:
        code = build_app(argv)(argv, prog_name="gpt")
    except SystemExit as stop:  # typer has said what there was to say, but for Ctrl-C
        code = _complain("interrupted", INTERRUPTED) if stop.code == INTERRUPTED else stop.code
    except GptError as error:
        code = _complain(error.message, error.exit_code)
    except OSError as error:
        code = _complain(
            _os_error(error),
            BAD_INPUT
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
            else FAILED,
        )
    except Exception as error:
        if str(error).startswith(NO_HOME):
            code = _complain(
                "this user has no home folder, and one is needed here\n  name one: HOME=/path gpt ...",
                BAD_INPUT,
            )
        else:
            code = _complain(
                f"{type(error).__name__}: {error}\n  this is a bug: run again with --debug for the traceback",
                FAILED,
            )
    sys.exit(code)


def _complain(text: str, code: int) -> int:
    from gptcli.cli.console import as_options, wrapped

    print(wrapped(f"gpt: {as_options(text)}"), file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full\n  free some space and run the command again: what was whole is kept"
    return f"{where}{(error.strerror or str(error)).lower()}"
