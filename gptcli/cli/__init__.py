"""The `gpt` command: its subcommands, and how errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from typing import Any

import typer

from gptcli import __version__, optional_kernels
from gptcli.cli.command import Group
from gptcli.cli.messages import current_messages
from gptcli.devices import MPS_OUT_OF_MEMORY
from gptcli.errors import GptError, package_error
from gptcli.openmp import check_thread_environment, set_spin_environment

COMMANDS = {  # subcommand: its module in gptcli.cli, and its line in `gpt --help`
    "tokenize": ("tokenize", "Train a BPE tokenizer; convert text to token ids and back."),
    "build-shards": ("build_shards", "Turn documents into shuffled, checksummed shards of tokens."),
    "train": ("train", "Train a GPT on shards with the paper's recipe."),
    "sample": ("sample", "Generate text with a trained model."),
    "eval": ("eval", "Measure loss, perplexity and bits per byte, or score tasks."),
    "cost": ("cost", "Estimate FLOPs, memory, GPU-years and dollars of a model."),
}
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
OUT_OF_MEMORY = "OutOfMemoryError"  # of torch, which need not be imported here
NO_HOME = "Could not determine home directory"  # RuntimeError of pathlib
FREE_SPACE = "free some space and run the command again; complete files are kept"


def build_app(argv: list[str]) -> typer.Typer:
    """Return the command line for these arguments.

    A subcommand is imported only if it is named, or its options are completed.
    """
    named = next((_hyphens(word) for word in argv if not word.startswith("-")), None)
    app = typer.Typer(
        name="gpt",
        cls=Group,
        help="Rebuild the systems of the GPT papers: raw text to a trained model, its samples, "
        "scores and cost.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _hyphens},
        # without panels, the list of commands is printed in half the time
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
    """Return a name with hyphens: --n_layer as --n-layer, build_shards as build-shards."""
    return name.replace("_", "-")


def reworded(argv: list[str]) -> list[str]:
    """Return `gpt help [COMMAND]` as --help and `gpt version` as --version."""
    if argv[:1] == ["help"]:
        return [*(word for word in argv[1:] if word not in ("help", "--help", "-h")), "--help"]
    return ["--version"] if argv[:1] == ["version"] else argv


def _not_loaded() -> None:
    """Represent a command in `gpt --help` without importing its module."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gpt {__version__}")
        raise typer.Exit()


def root(
    debug: bool = typer.Option(False, "--debug", help="Print the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", is_eager=True, callback=_version
    ),
) -> None:
    """Declare the options of `gpt` itself; they have callbacks or are read by `main`."""


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 failure while running, 2 bad usage or input, 130 interrupted.
    """
    from gptcli.cli.console import set_up_streams

    set_up_streams()
    set_spin_environment()
    argv = reworded(sys.argv[1:])
    if "--debug" in argv:  # anywhere on the line
        argv = [word for word in argv if word != "--debug"]
        build_app(argv)(argv, prog_name="gpt")
        return
    try:
        code = run_command(argv)
        sys.stdout.flush()
    except SystemExit as stop:  # the reader of stdout has closed it
        code = stop.code
    except GptError as error:
        code = _print_error(error.message, error.exit_code)
    except OSError as error:
        code = _print_error(
            _os_error(error),
            BAD_INPUT
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
            or error.errno == errno.ENAMETOOLONG
            else FAILED,
        )
    except Exception as error:
        if (on_apple := MPS_OUT_OF_MEMORY in str(error)) or type(error).__name__ == OUT_OF_MEMORY:
            code = _print_error(
                f"out of memory: {str(error).splitlines()[0]}\n"
                "  use a smaller --batch-size, or --device cpu"
                + ("" if on_apple else "; nvidia-smi shows other programs that occupy the GPU"),
                FAILED,
            )
        elif os.strerror(errno.ENOSPC) in str(error):  # of a library that hides the system's error
            code = _print_error(f"{error}\n  {FREE_SPACE}", FAILED)
        elif str(error).startswith(NO_HOME):
            code = _print_error(
                "this user has no home folder, which is needed here\n  set one: HOME=/path gpt ...",
                BAD_INPUT,
            )
        elif (at_fault := package_error(error)) is not None:
            code = _print_error(at_fault.message, at_fault.exit_code)
        else:
            code = _print_error(
                f"{type(error).__name__}: {error}\n"
                "  this is a bug: run the command again with --debug for the traceback",
                FAILED,
            )
    with contextlib.suppress(SystemExit, OSError):
        sys.stdout.flush()
    current_messages().end(code if isinstance(code, int) else FAILED if code else 0)
    sys.exit(code)


def run_command(argv: list[str]) -> Any:
    """Run a command line, and return its exit code. Raises the errors of the command."""
    check_thread_environment()
    if os.environ.get("GPT_KERNELS"):  # an impossible value is refused before anything is printed
        optional_kernels.can_be_built()
    try:
        return build_app(argv)(argv, prog_name="gpt")
    except SystemExit as stop:  # typer has printed its message, except for Ctrl-C
        if stop.code == INTERRUPTED:
            return _print_error("interrupted", INTERRUPTED)
        return stop.code


def _print_error(text: str, code: int) -> int:
    """Print an error, and log it; return its exit code."""
    from gptcli.cli.console import as_options, wrapped

    line = f"gpt: {as_options(text)}"
    if (log := current_messages().log) is not None:
        log.write(line)
    print(wrapped(line), file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    from gptcli.files import advice

    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        # writers of files name them
        where = where or "standard output: "
        return f"{where}the disk is full\n  {FREE_SPACE}"
    if error.errno == errno.EBADF and not where:  # `_ClosedOutput`
        return (
            "standard output is closed, so what was printed is lost\n"
            "  leave out >&-, or send it to a file"
        )
    if error.errno == errno.ENAMETOOLONG:
        return (
            f"{str(error.filename or '')[:40]}...: the name is too long for a file\n"
            "  a text is no file: it stands behind the model, gpt sample RUN TEXT, or in a file"
        )
    if not where:  # what is known to do is about a file
        what = (error.strerror or str(error)).lower()
        if isinstance(error, PermissionError):
            return (
                f"{what} by the system\n"
                "  processes that share work need a /dev/shm to which this user may write; if it is "
                "something else, --debug shows where"
            )
        return f"{what}\n  --debug shows what was asked of the system"
    hint = "" if (todo := advice(error)) == "" else f"\n  {todo}"
    return f"{where}{(error.strerror or str(error)).lower()}{hint}"
