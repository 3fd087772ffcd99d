"""The `gpt` command, and `python -m gptcli`: first of all an answer to Ctrl-C, then the command
line.
"""

from gptcli import interrupts


def main() -> None:
    """Run the command line and exit, as `gptcli.cli.app.main` does."""
    interrupts.begin("gpt: interrupted\n")
    from gptcli.cli.app import main as run

    try:
        run()
    except SystemExit as stop:
        interrupts.finish(stop.code)
        raise


if __name__ == "__main__":
    main()
