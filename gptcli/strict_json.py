"""Write JSON that every reader takes: no NaN or Infinity, which JSON lacks, and no lone surrogate
outside an escape.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def dumps(
    value: object, *, ascii_only: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    """`value` as JSON; a number that is not finite becomes null.

    Characters are themselves, unless `ascii_only`. A lone surrogate, which a file name that is not
    UTF-8 holds for each such byte, is escaped, so that the text can be encoded and reads back the
    same.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=ascii_only, indent=indent, sort_keys=sort_keys, allow_nan=False
        )
    except ValueError:  # a number that is not finite
        text = json.dumps(
            finite(value),
            ensure_ascii=ascii_only,
            indent=indent,
            sort_keys=sort_keys,
            allow_nan=False,
        )
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(value: Any) -> Any:
    """`value` with None in place of each number that is not finite, in lists and objects too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
