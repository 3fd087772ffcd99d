"""The original file formats of the tasks, each read into rows of plain fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptcli.errors import InputError

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]


def read_jsonl(path: Path) -> Iterator[Row]:
    """A JSON object a line; its "id" is the line where it has none. Raises InputError with file and line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"not valid UTF-8 at byte {error.start}", where=where) from None
            except json.JSONDecodeError as error:
                raise InputError(f"not valid JSON: {error.msg}", where=where) from None
            if not isinstance(row, dict):
                raise InputError("not a JSON object", where=where)
            yield {"id": f"{path.name}:{number}", **row}


READERS: dict[str, Reader] = {"jsonl": read_jsonl}
