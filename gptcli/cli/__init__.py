"""Command line: one module per subcommand. Nothing here imports torch at startup."""

from gptcli.cli.app import main

__all__ = ["main"]
