"""The face of the toolkit: one file per subcommand, options in, report out. Nothing here imports
torch.
"""

from gptcli.cli.app import main

__all__ = ["main"]
