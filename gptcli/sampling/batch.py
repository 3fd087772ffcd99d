"""Many prompts from a JSONL file, each line of the output in its place, and the same file if the
work is killed and resumed.

Rows are refilled as they finish inside a group of prompts; a group's lines reach the disk together.
A resumed job starts at the first group that is not whole, so that every prompt meets the same
company at the same time: the same products, to the last bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli import strict_json
from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, parse_json
from gptcli.model.transformer import GPT
from gptcli.sampling.decode import decode, sample_generator
from gptcli.sampling.engine import Engine
from gptcli.sampling.params import Rules
from gptcli.sampling.streaming import TextRow
from gptcli.tokenizer.tokenizer import Tokenizer, refuse_surrogates

GROUP = 16  # refills of each row in a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is made of each prompt."""

    rules: Rules
    max_tokens: int
    num_samples: int = 1
    stops: tuple[str, ...] = ()
    seed: int = 0
    batch: int = 8


def read_prompts(path: Path) -> list[str]:
    """The field "prompt" of each line. Raises InputError with file and line where a line is not
    such an object.
    """
    prompts = []
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(
            what, where=path, hint='a line is one JSON object: {"prompt": "Once upon a time"}'
        ) from None
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        value = parse_json(line, where)
        if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
            raise InputError(
                'no text under "prompt"',
                where=where,
                hint='a line is one JSON object: {"prompt": "Once upon a time"}',
            )
        try:
            refuse_surrogates(value["prompt"])
        except InputError as error:
            raise InputError(error.what, where=where) from None
        prompts.append(value["prompt"])
    if not prompts:
        raise InputError("the file holds no prompts", where=path)
    return prompts


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    job: Job,
    out: Path,
    *,
    about: dict[str, Any],
    events: Events = SILENT,
) -> None:
    """Write a line of JSON for each prompt to `out`, which appears once it is whole; what is done
    of it before stays in a file beside it.

    `about` is whatever else decides the text (the model, its precision): a file of other work is
    not gone on with. Raises UsageError.
    """
    unfinished = unfinished_of(out)
    header = strict_json.dumps(
        {"job": asdict(job), "prompts": len(prompts), **about}, ascii_only=True, sort_keys=True
    )
    lines = _whole_lines(unfinished)
    if lines and lines[0] != header:
        raise UsageError(
            "was begun with other prompts, options or weights",
            where=unfinished,
            hint="{option:force} starts over",
        )
    size = GROUP * job.batch
    done = (len(lines) - 1) // size * size if lines else 0
    with atomic_write(unfinished, "w") as file:
        file.writelines(f"{line}\n" for line in (lines[: 1 + done] or [header]))
    engine = Engine(model, min(job.batch, len(prompts) * job.num_samples))
    with open(unfinished, "a", encoding="utf-8", newline="\n") as file:
        begin, tokens, cut = time.monotonic(), 0, 0
        for first in range(done, len(prompts), size):
            rows = _rows(tokenizer, prompts[first : first + size], first, job)
            finished, cut = 0, cut + sum(len(some[0].prompt) > model.config.n_ctx for some in rows)
            again = engine if engine.fixed else None  # what was compiled once serves every group
            for row in decode(
                model,
                (row for some in rows for row in some),
                job.rules,
                batch=engine.rows,
                log_probs=True,
                engine=again,
            ):
                finished, tokens = finished + 1, tokens + len(row.tokens)
                speed = round(tokens / max(1e-9, time.monotonic() - begin))
                prompts_done = first + finished / job.num_samples
                events.progress(
                    "sample", prompts_done, len(prompts), "prompts", tokens_per_second=speed
                )
            file.writelines(
                f"{_line(first + i, prompts[first + i], some)}\n" for i, some in enumerate(rows)
            )
            file.flush()
            os.fsync(file.fileno())
    with atomic_write(out, "w") as file:
        file.writelines(f"{line}\n" for line in _whole_lines(unfinished)[1:])
    unfinished.unlink()
    events.finish("sample")
    if cut:
        events.warn(
            f"{cut:,} prompts are longer than the model's context: it read their last {model.config.n_ctx:,} tokens"
        )


def unfinished_of(out: Path) -> Path:
    """Where the work for `out` stands until it is whole."""
    return out.with_name(f".{out.name}.unfinished")


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; end-of-text where it is empty, as GPT-2 starts. Raises UsageError
    where there is none.
    """
    if tokens := tokenizer.encode(prompt):
        return tokens
    if tokenizer.eot_id is None:
        raise UsageError(
            "the prompt is empty, and this tokenizer has no end-of-text to start from",
            hint="give a prompt",
        )
    return [tokenizer.eot_id]


def _rows(
    tokenizer: Tokenizer, prompts: Sequence[str], first: int, job: Job
) -> list[list[TextRow]]:
    return [
        [
            TextRow(
                tokenizer,
                prompt_tokens(tokenizer, prompt),
                max_tokens=job.max_tokens,
                generator=sample_generator(job.seed, number, first + i),
                stops=job.stops,
            )
            for number in range(job.num_samples)
        ]
        for i, prompt in enumerate(prompts)
    ]


def _line(index: int, prompt: str, rows: Sequence[TextRow]) -> str:
    samples = []
    for row in rows:
        made = row.completion()
        samples.append(
            {
                "text": made.text,
                "tokens": made.tokens,
                "log_probs": [round(value, 4) for value in made.log_probs],
                "finish_reason": made.finish_reason,
            }
        )
    return strict_json.dumps({"index": index, "prompt": prompt, "samples": samples})


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that a crash may have cut short."""
    if not path.exists():
        return []
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
