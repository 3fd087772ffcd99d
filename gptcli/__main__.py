"""Entry point of the `gpt` command and of `python -m gptcli`: handle Ctrl-C first, then run the
command line.
"""

import os
import sys

from gptcli import interrupts


def main() -> None:
    """Run the command line and exit, as `gptcli.cli.main` does."""
    interrupts.begin("gpt: interrupted\n")
    # PyTorch's own remarks on a lost connection are pages of addresses beside the one message
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from gptcli.cli import main as run
    except (ImportError, EOFError, ValueError) as error:
        from gptcli.errors import package_error

        if (at_fault := package_error(error)) is None:
            raise
        print(f"gpt: {at_fault.message}", file=sys.stderr)
        sys.exit(at_fault.exit_code)
    try:
        run()
    except SystemExit as stop:
        interrupts.finish(stop.code)
        raise


if __name__ == "__main__":
    main()
