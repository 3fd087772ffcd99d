"""Write the golden files anew, after a change that users were told of; or print the SHA-256 of all
that a small chain makes.

python -m tests.golden            write options.json and outputs.json
python -m tests.golden --bytes    print digests, to compare two versions on one machine
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.golden.surface import options, outputs

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(HERE / "fixtures" / "documents.jsonl", folder)
        made = outputs(folder)
        if "--bytes" in sys.argv:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    print(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder))
            return
    for file, value in {"options.json": options(), "outputs.json": made}.items():
        (HERE / file).write_text(
            json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
