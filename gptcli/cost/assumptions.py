"""A constant that a result rests on, with where it is from: every estimate carries its own list of
them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assumption:
    name: str
    value: float
    unit: str
    source: str
    date: str
    """Of the source, ISO; empty for a definition and for what the user said."""
    url: str = ""
    """Where the source stands; empty for papers that are named."""


USER = "given on the command line"
