"""The commands that are interrupted, at their smallest: those of tests.faults, and the ones that
only a user at a terminal meets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import split

from tests.faults.commands import Command, files
from tests.faults.commands import commands as faulty
from tests.faults.commands import prepare as prepare_faulty

TASK = """kind = "classification"
train = "train.jsonl"
validation = "dev.jsonl"
labels = ["no", "yes"]
batch = 4
epochs = 3
[fields]
text = "sentence"
"""
FINETUNE = split("train --init-from in/run --finetune in/task/task.toml -o tuned")
STREAM = split("sample in/run 'one two' --max-tokens 400 --device cpu --precision fp32")
SESSION = split("sample in/run -i --max-tokens 400 --device cpu --precision fp32")
SCORE = split("eval in/run --task lambada --data in/lambada -o eval.json --device cpu")


@dataclass(frozen=True, slots=True)
class Pressed:
    """A command line, and how a stopped one is gone on with."""

    command: Command
    on_terminal: bool = False
    """It is a session at a terminal, where Ctrl-C may also end no more than a sample."""
    kept: tuple[str, ...] = ()
    """Files for its next start, which may stay."""
    like: str = ""
    """The command whose outputs are the same bytes, and which can go on with it."""


def commands() -> Iterator[Pressed]:
    for command in faulty():
        if command.name == "torchrun, 2":  # a Ctrl-C there is torchrun's to answer
            continue
        command = replace(command, line=longer(command.line), again=longer(command.again))
        kept = (".out.jsonl.unfinished",) if command.name == "sample" else ()
        yield Pressed(command, kept=kept, like="train" if command.name == "train, 2" else "")
    nothing = files()
    score = Command("eval, a task", SCORE, [*SCORE, "--resume"], scores)
    yield Pressed(score, kept=("eval.records",))
    yield Pressed(
        Command(
            "finetune",
            FINETUNE,
            [*FINETUNE, "--resume"],
            files("tuned/*.safetensors", "tuned/finetune.json"),
            "tuned",
        )
    )
    yield Pressed(Command("sample, a stream", STREAM, STREAM, nothing))
    yield Pressed(Command("sample -i", SESSION, [], nothing), on_terminal=True)


def longer(line: list[str]) -> list[str]:
    """So many steps that they take longer than what comes before and after them."""
    changes = {"--tokens": "2400", "--checkpoint-every": "25", "--eval-every": "25"}
    if line[0] != "train":
        return line
    return [changes.get(option, word) for option, word in zip(["", *line], line, strict=False)]


def scores(folder: Path) -> dict[str, str]:
    """Fingerprints of the scores and of every whole record, the first ones if it was stopped."""
    found = files("eval.json")(folder)
    for log in folder.glob("eval.records/*.jsonl"):
        rows = [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
        found |= {f"record {row.get('index', 'header')}": json.dumps(row) for row in rows}
    return found


def prepare(folder: Path) -> None:
    """All inputs, in a process of its own."""
    prepare_faulty(folder)
    (folder / "in/task").mkdir()
    (folder / "in/task/task.toml").write_text(TASK)
    for name in ("train", "dev"):
        rows = [
            {"sentence": f"{word} {number}", "label": label}
            for number in range(8)
            for word, label in (("one", "yes"), ("two", "no"))
        ]
        (folder / f"in/task/{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "in/lambada").mkdir()
    texts = [
        f"{first} small words {last}"
        for first in ("one", "two", "three")
        for last in ("again", "small", "GPT")
    ]
    (folder / "in/lambada/lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
