"""Defaults of the sampling options, which the command `gpt sample`, the page of `--serve` and the
library share. Imports nothing: the help of the command shows them.
"""

TEMPERATURE = 1.0
TOP_K = 40
"""Most probable tokens to sample from, as in GPT-2's release; all of them if top-p is given."""
MAX_TOKENS = 200
"""Maximum length of a sample, in tokens."""
