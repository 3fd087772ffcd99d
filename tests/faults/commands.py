"""The commands that faults are injected into, at their smallest, and what must hold of what they
leave behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import split

# what is not whole yet has such a name
PARTS = re.compile(r"(^|/)\.[^/]*(\.partial|\.unfinished)($|/)|/\.work/")
TRAIN = split(
    "train --data in/shards --out run --n-layer 1 --n-head 1 --d-model 8 --n-ctx 16 --tokens 192 --batch-tokens 32 --micro-batch 1 "
    "--lr 0.01 --checkpoint-every 2 --eval-every 3 --samples 0 --compile off --precision fp32"
)
BUILD = split(
    "build-shards in/corpus -o shards --tokenizer in/tokenizer.json --val-fraction 0.2 --shard-tokens 400 --documents paragraph"
)
TWO = [*TRAIN, "--layout", "dp=2"]
TORCHRUN = ["torchrun", *TWO]
POOL = split(
    "build-shards in/large -o shards --tokenizer in/tokenizer.json --val-fraction 0.2 --shard-tokens 200k --workers 2"
)
SAMPLE = split(
    "sample in/run --prompts in/prompts.jsonl -o out.jsonl --max-tokens 4 --batch-size 1 --device cpu --precision fp32"
)
LEARN = split("tokenize train in/corpus/a.txt --vocab-size 270 -o tokenizer.json")
ENCODE = split("tokenize encode in/corpus --tokenizer in/tokenizer.json -o tokens.bin")
SCORE = split("eval in/run --data in/shards -o eval.json --device cpu")
COST = split("cost --size 125M --plot cost.svg")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, run in a folder that holds `in/`; `again` goes on after a fault."""

    name: str
    line: list[str]
    again: list[str]
    outputs: Callable[[Path], dict[str, str]]
    """Fingerprints of all that is there under a final name; each must be the undisturbed run's, or
    absent.
    """
    folder: str = ""
    """The output folder, where it is one: no leftover may stay in it."""
    workers: bool = False
    """It starts some: they are what is struck."""
    like: str = ""
    """The command whose workers do the same operations and leave the same outputs."""


def commands() -> list[Command]:
    shards = files("shards/*.bin", "shards/*.idx", "shards/*.json", volatile=("resume.json",))
    return [
        Command("tokenize train", LEARN, [*LEARN, "--force"], files("tokenizer.json")),
        Command("tokenize encode", ENCODE, [*ENCODE, "--force"], files("tokens.bin", "tokens.idx")),
        Command("build-shards", BUILD, [*BUILD, "--resume"], shards, "shards"),
        Command("train", TRAIN, [*TRAIN, "--resume"], run, "run"),
        Command("sample", SAMPLE, [*SAMPLE, "--resume"], files("out.jsonl")),
        Command("eval", SCORE, [*SCORE, "--force"], files("eval.json")),
        Command("cost", COST, COST, files("cost.svg")),
        Command("build-shards, 2", POOL, [*POOL, "--resume"], shards, "shards", workers=True),
        Command("train, 2", TWO, [*TWO, "--resume"], run, "run", workers=True),
        Command(
            "torchrun, 2", TORCHRUN, [*TWO, "--resume"], run, "run", workers=True, like="train, 2"
        ),
    ]


def files(*patterns: str, volatile: tuple[str, ...] = ()) -> Callable[[Path], dict[str, str]]:
    def outputs(folder: Path) -> dict[str, str]:
        found = [
            path
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.name not in volatile and not path.name.startswith(".")
        ]
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
        }

    return outputs


def run(folder: Path) -> dict[str, str]:
    """The model, the losses that were logged, and every checkpoint, which must match its own
    checksums.
    """
    found = files(
        "run/model.safetensors",
        "run/config.json",
        "run/tokenizer*.json",
        "run/generation_config.json",
    )(folder)
    for step in folder.glob("run/checkpoints/step-*"):
        state = json.loads((step / "state.json").read_bytes())
        for name, digest in state["sha256"].items():
            assert hashlib.sha256((step / name).read_bytes()).hexdigest() == digest, (
                f"{step.name}/{name} is not what its state.json says"
            )
        found |= {f"{step.name}/{name}": digest for name, digest in state["sha256"].items()}
    log = folder / "run/metrics.jsonl"
    for line in log.read_bytes().split(b"\n")[:-1] if log.exists() else []:
        row = json.loads(line)
        found[f"loss {row['step']}"] = str((row["loss"], row.get("val_loss")))
    return found


def leftovers(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if PARTS.search(str(path.relative_to(folder)))
    ]


def prepare(folder: Path) -> None:
    """All inputs, in a process of its own."""
    import gzip

    import numpy as np

    from gptcli.tokenizer.training import train_tokenizer

    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "small", "words", "again", "GPT", "—", "Grüße"]
    texts = [" ".join(rng.choice(words, size=12)) for _ in range(60)]
    corpus = folder / "in/corpus"
    corpus.mkdir(parents=True)
    (corpus / "a.txt").write_text("\n\n".join(texts[:30]), encoding="utf-8")
    (corpus / "b.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts[30:45]), encoding="utf-8"
    )
    with gzip.GzipFile(corpus / "c.jsonl.gz", "wb", mtime=0) as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in texts[45:52]).encode())
    try:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": texts[52:]}), corpus / "d.parquet")
    except ImportError:
        pass
    (folder / "in/large").mkdir()  # enough for two workers
    with open(folder / "in/large/a.jsonl", "w", encoding="utf-8") as large:
        large.writelines(
            json.dumps({"text": f"{number} " + texts[number % 60] * 40}) + "\n"
            for number in range(2000)
        )
    train_tokenizer(texts, 280).save(folder / "in/tokenizer.json")
    (folder / "in/prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": word}) + "\n" for word in words[:12]), encoding="utf-8"
    )
    for line in (
        ["in/shards" if word == "shards" else word for word in BUILD],
        ["in/run" if word == "run" else word for word in TRAIN],
    ):
        assert call(line, folder) == 0, (folder / "log").read_text()


def call(line: list[str], folder: Path, log_name: str = "log") -> int:
    """Run a command line in this process as the program would, its output in `log_name`; the exit
    code.
    """
    import sys

    from gptcli.cli import main

    os.chdir(folder)
    sys.argv = ["gpt", *line]
    if line[0] == "torchrun":
        main = torchrun
    log = os.open(folder / log_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(stop.code or 0)
    return 0


def torchrun() -> None:
    """The command line in sys.argv on two processes of torchrun's, without its restarts."""
    import sys

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    try:
        main(["--standalone", "--nproc-per-node", "2", "-m", "tests.faults.lost", *sys.argv[2:]])
    except ChildFailedError:
        raise SystemExit(1) from None
