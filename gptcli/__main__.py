"""Entry point of the `gpt` command and of `python -m gptcli`: handle Ctrl-C first, then run the
command line.
"""

import sys

from gptcli import interrupts


def main() -> None:
    """Run the command line and exit, as `gptcli.cli.main` does."""
    interrupts.begin("gpt: interrupted\n")
    try:
        from gptcli.cli import main as run
    except ImportError as error:
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
