"""`gpt export`: write a model for other programs, as a transformers folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli.command import Command, releasing
from gptcli.cli.console import ConsoleEvents
from gptcli.cli.options import OUTPUT, flag, out, quantity, value


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export", cls=Command)(releasing(export))


def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Run, transformers folder, file of nanoGPT or llm.c, or a name on the Hub: gpt2.",
        ),
    ],
    output: Annotated[
        Path,
        out(
            "File that ends in .gguf, for llama.cpp; or else a folder, for transformers.",
            "PATH",
            shown=False,
        ),
    ],
    checkpoint: Annotated[
        int | None,
        quantity("checkpoint", "Step of the checkpoint to export.", None, "the newest"),
    ] = None,
    precision: Annotated[
        str,
        value("Precision of a GGUF file's matrices: fp32, fp16 or bf16.", "KIND", OUTPUT),
    ] = "fp32",
    force: Annotated[bool, flag("--force", "Replace existing output.", OUTPUT)] = False,
) -> None:
    """Write a model for other programs: a folder for transformers, or a GGUF file for llama.cpp.

    A run folder is a transformers folder already; this is for models of other programs, and for
    checkpoints. `hf upload NAME FOLDER` publishes the folder on the Hub.

    Examples:

        gpt export runs/350M -o 350M.gguf --precision fp16

        gpt export nanoGPT/out/ckpt.pt -o nano
    """
    from gptcli.api import export_model

    export_model(
        model,
        output,
        checkpoint=checkpoint,
        precision=precision,
        force=force,
        events=ConsoleEvents(),
    )
    print(output)
