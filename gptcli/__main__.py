"""`python -m gptcli` is the same command as `gpt`."""

from gptcli.cli import main

if __name__ == "__main__":
    main()
