"""What tests of the corpus share."""

from __future__ import annotations

import pytest

from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A token a byte, so that a test can say what the tokens are; end-of-text is 256."""
    return Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
