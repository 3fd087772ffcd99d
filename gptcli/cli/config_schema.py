"""JSON schema of `gpt train --config`, for editors that complete and check TOML.

    python -m gptcli.cli.config_schema > examples/config.schema.json

A file that begins with `#:schema PATH` is checked against it by Taplo, and so in most editors.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin, get_type_hints

from gptcli import strict_json
from gptcli.cli.config import SYNONYMS
from gptcli.cli.train import train
from gptcli.cli.train_plan import NAMES, OneOf, batch, names, truth, words
from gptcli.settings import NUMBERS, Number

QUANTITY = r"^\s*([0-9][0-9_]*\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+)\s*[kKmMbBgGtT]?\s*$"
KINDS: dict[Any, dict[str, Any]] = {
    words: {"type": "string"},
    truth: {"type": "boolean"},
    names: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}
CONSTANTS = {
    "beta1": "Decay rate of Adam's mean of gradients.",
    "beta2": "Decay rate of Adam's mean of squared gradients.",
    "eps": "Adam's epsilon, added to the denominator of an update.",
    "clip": "Largest global norm of the gradient; a larger one is scaled down to it.",
    "ramp_from": "Tokens in the first step's batch.",
    "follow_noise": "Let the batch follow the gradient noise scale.",
}


def schema() -> dict[str, Any]:
    """Return the schema: type and range of every key, with the help text of its option."""
    helped = CONSTANTS | options()
    named = {
        name: {**kind(name, reader), "description": helped[name]} for name, reader in NAMES.items()
    }
    dashed = {
        name.replace("_", "-"): {"$ref": f"#/properties/{name}"} for name in named if "_" in name
    }
    dashed |= {
        other: {"$ref": f"#/properties/{name}"} for other, name in SYNONYMS.items() if name in named
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gpt train --config",
        "description": 'Quantities take suffixes in quotes: "12k", "0.5M", "300B". '
        "Missing values come from the paper or the machine.",
        "type": "object",
        "properties": named | dashed,
        "additionalProperties": False,
    }


def kind(name: str, reader: Any) -> dict[str, Any]:
    """Return the schema of one key, from the reader of its values."""
    if isinstance(reader, OneOf):
        return {"enum": list(reader.names)}
    if reader is batch:
        return {"anyOf": [{"const": "auto"}, kind(name, NUMBERS[name])]}
    if isinstance(reader, Number):
        types = ["integer", "number", "string"] if reader.whole else ["number", "string"]
        low, high = (
            ("exclusiveMinimum" if reader.above else "minimum"),
            ("exclusiveMaximum" if reader.below else "maximum"),
        )
        return {"type": types, low: reader.low, high: reader.high, "pattern": QUANTITY}
    if name == "size":
        from gptcli.model.config import size_names

        return {"type": "string", "examples": size_names()}
    return KINDS[reader]


def options() -> dict[str, str]:
    """Return the help text of each option of `gpt train`."""
    hints = get_type_hints(train, include_extras=True)
    return {
        name: get_args(hint)[1].help
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
    }


if __name__ == "__main__":
    print(strict_json.dumps(schema(), indent=2))
