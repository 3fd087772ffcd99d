"""gpt: the systems of the GPT papers on one command line."""

__version__ = "0.1.0"
