"""Text as it was before a data set's tokenisation."""

from __future__ import annotations

from typing import Protocol


class Detokenizer(Protocol):
    def detokenize(self, text: str) -> str: ...

    def tokenize(self, text: str) -> str: ...

    def units(self, text: str) -> int: ...


DETOKENIZERS: dict[str, Detokenizer] = {}
