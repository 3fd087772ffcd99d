"""A build that many machines read: the jobs of an array share an output folder, and each brings its
part of the documents into units.

    gpt build-shards --config recipe.toml -o shards --part 3/16     in every job, with its own number
    gpt build-shards --config recipe.toml -o shards --resume        when all are done: the rest, with the units that are there

Reading, extraction, cleaning, the quality filter, hashing and, where nothing has to be known about
all documents first, tokenising are done in parts; comparing documents, cutting them and writing
shards is the last run's. The bytes are those of one run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptcli.corpus.chunks import Tally, read_head, read_tally
from gptcli.corpus.config import Build, refuse_changes
from gptcli.corpus.coordinator import WORK, context_of, prepare, read_one, spans_of
from gptcli.corpus.streams import STDIN
from gptcli.corpus.workers import open_pool
from gptcli.errors import UsageError
from gptcli.events import SILENT, Events
from gptcli.files import read_json, write_json
from gptcli.shards.manifest import MANIFEST, RECORD

PARTS = "parts"  # the key of the record that says how many


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    """From 1 on."""
    of: int

    def done(self, out: Path) -> Path:
        """The file that says that this part is done."""
        return out / WORK / f"part-{self.number}-of-{self.of}.json"


def parse_part(text: str) -> Part:
    """The part that "3/16" names. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"{text!r} is no part", hint="3/16 is the third of sixteen; the first is 1/16"
        )
    return Part(int(match[1]), int(match[2]))


def missing_parts(out: Path, of: int) -> list[int]:
    """The numbers of the parts that are not done."""
    return [number for number in range(1, of + 1) if not Part(number, of).done(out).exists()]


def begin_part(build: Build, out: Path, part: Part) -> None:
    """Take a share in the output folder. Raises UsageError where it holds anything but the parts of
    this very build.
    """
    if STDIN in build.inputs:
        raise UsageError(
            "standard input cannot be read in parts",
            field="part",
            code="stdin_in_parts",
            hint="save the text to a file",
        )
    build.refuse_inputs_in(out)
    record = {**build.record(), PARTS: part.of}
    Path(os.path.realpath(out)).mkdir(parents=True, exist_ok=True)
    if not (out / RECORD).exists():
        # what begins with a dot is another part at its beginning
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise UsageError(
                "the output folder is not empty", where=out, hint="choose another {option:out}"
            )
        write_json(out / RECORD, record)
    refuse_changes(read_json(out / RECORD), record, out)


def finish_part(
    build: Build,
    out: Path,
    part: Part,
    *,
    workers: int = 1,
    runner: str = "local",
    events: Events = SILENT,
) -> Tally:
    """Read this part's documents, going on where an earlier attempt ended; what became of them so
    far.

    Raises InputError on a broken input, RunError where a worker dies; the folder keeps what is
    there.
    """
    tally = Tally()
    if (out / MANIFEST).exists():
        return tally
    context = context_of(build, out)
    prepare(build, context, events)
    with open_pool(runner, build.workers(workers), context) as pool:
        for _, paths in pool.map(
            read_one, islice(spans_of(context, part.of), part.number - 1, None, part.of)
        ):
            for path in paths:
                tally.add(read_tally(read_head(path)[0]))
            events.progress(f"part {part.number}", tally.read, None, "documents")
    events.finish(f"part {part.number}")
    write_json(part.done(out), {"documents": tally.read})
    return tally
