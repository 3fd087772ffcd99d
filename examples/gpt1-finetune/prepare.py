"""Convert SST-2 to the examples of a fine-tuning task, and write text for pretraining.

Usage: python prepare.py SST2_FOLDER WIKITEXT_FOLDER

SST2_FOLDER contains stsa.binary.*, with lines such as "1 a stirring , funny film". The files
text.txt, train.jsonl, dev.jsonl and test.jsonl are written to out/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

OUT = Path("out")


def main(sst2: Path, wikitext: Path) -> None:
    """Write the splits of SST-2 and the pretraining text to `OUT`."""
    OUT.mkdir(exist_ok=True)
    sentences = []
    for split in ("train", "dev", "test"):
        rows = [
            line.split(" ", 1)
            for line in (sst2 / f"stsa.binary.{split}").read_text(encoding="utf-8").splitlines()
        ]
        lines = [
            json.dumps({"text": text, "label": int(label)}, ensure_ascii=False)
            for label, text in rows
        ]
        (OUT / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sentences += [text for _, text in rows] if split == "train" else []
    prose = "\n".join(
        (wikitext / f"{name}.txt").read_text(encoding="utf-8") for name in ("valid", "test")
    )
    (OUT / "text.txt").write_text("\n".join(sentences) + "\n" + prose, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
