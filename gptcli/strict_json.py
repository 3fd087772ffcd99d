"""Write JSON that every reader accepts: no NaN or Infinity, which JSON lacks, and no unescaped lone
surrogates.
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
    """Return `value` as JSON; a number that is not finite becomes null.

    Characters are written as they are, unless `ascii_only`. A lone surrogate, which Python uses for
    each byte of a file name that is not UTF-8, is escaped, so that the text can be encoded and
    reads back the same.
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
    """Return `value` with None in place of each number that is not finite, in lists and objects
    too.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
