"""gpt: the systems of the GPT papers, as a library and on one command line.

The names below are imported when they are first used, so `import gptcli` is fast and does not
import torch. `examples/api.py` uses them from a text file to a score.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptcli.api import (
        build_shards,
        estimate_cost,
        evaluate,
        export_model,
        generate,
        load_model,
        train,
    )
    from gptcli.errors import GptError, InputError, Interrupted, RunError, UsageError
    from gptcli.events import Events
    from gptcli.model.config import ModelConfig
    from gptcli.model.transformer import GPT
    from gptcli.sampling.params import SamplingParams
    from gptcli.shards.loader import DataLoader
    from gptcli.tokenizer.load import load_tokenizer
    from gptcli.tokenizer.tokenizer import Tokenizer
    from gptcli.tokenizer.training import train_tokenizer
    from gptcli.trainer.config import TrainConfig

__version__ = "0.2.0"
__all__ = [
    "GPT",
    "DataLoader",
    "Events",
    "GptError",
    "InputError",
    "Interrupted",
    "ModelConfig",
    "RunError",
    "SamplingParams",
    "Tokenizer",
    "TrainConfig",
    "UsageError",
    "build_shards",
    "estimate_cost",
    "evaluate",
    "export_model",
    "generate",
    "load_model",
    "load_tokenizer",
    "train",
    "train_tokenizer",
]

_MODULES = {
    "GPT": "gptcli.model.transformer",
    "DataLoader": "gptcli.shards.loader",
    "Events": "gptcli.events",
    "ModelConfig": "gptcli.model.config",
    "SamplingParams": "gptcli.sampling.params",
    "Tokenizer": "gptcli.tokenizer.tokenizer",
    "TrainConfig": "gptcli.trainer.config",
    "load_tokenizer": "gptcli.tokenizer.load",
    "train_tokenizer": "gptcli.tokenizer.training",
    **dict.fromkeys(
        ("GptError", "InputError", "Interrupted", "RunError", "UsageError"), "gptcli.errors"
    ),
    **dict.fromkeys(
        (
            *("build_shards", "estimate_cost", "evaluate", "export_model", "generate"),
            *("load_model", "train"),
        ),
        "gptcli.api",
    ),
}
"""Module of every public name."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
