"""Prompts: assembled from parts, or a JSONL file of them: one output line per prompt, resumable.

Within a group of prompts, a finished sequence makes room for the next one; the lines of a group are
written to disk together. A resumed job starts at the first incomplete group, so that every prompt
shares its batches with the same sequences as in an uninterrupted job: the output is the same to the
last bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli import toml_json
from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import (
    atomic_write,
    claim_file,
    complete_lines,
    read_text,
    sha256,
    written_through,
)
from gptcli.locks import nothing_to_resume, own_file
from gptcli.model.source import WEIGHTS
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.sampling.engine import Engine, worth_compiling
from gptcli.sampling.generate import (
    TextSequence,
    encode_prompt,
    generate_sequences,
    sample_generator,
)
from gptcli.sampling.load import PrecisionChoice, Quantize, load
from gptcli.sampling.params import SamplingParams
from gptcli.tokenizer.tokenizer import Tokenizer, refuse_surrogates
from gptcli.toml_json import parse_json

GROUP_BATCHES = 16  # prompts in a group, as a multiple of the batch size
PROMPT_HINT = 'each line is a JSON object: {"prompt": "Once upon a time"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """Sampling options that apply to every prompt of a file."""

    params: SamplingParams
    """Sampling parameters."""
    max_tokens: int
    """Maximum number of tokens per sample."""
    num_samples: int = 1
    """Samples per prompt."""
    stops: tuple[str, ...] = ()
    """Strings that end a sample."""
    seed: int = 0
    """Random seed."""
    batch_size: int = 8
    """Sequences generated at a time."""

    def as_dict(self) -> dict[str, Any]:
        """Return the options under the names used in the header of an unfinished file."""
        options = asdict(self)
        return {"rules": options.pop("params"), "batch": options.pop("batch_size"), **options}


def read_prompts(path: Path) -> list[str]:
    """Return the field "prompt" of each line of a JSONL file; empty lines are passed over.

    Raises InputError with the line number if a line is not an object with a text in that field, or
    if the file is missing or empty.
    """
    prompts = []
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(what, where=path, hint=PROMPT_HINT) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        value = parse_json(line, where, hint=PROMPT_HINT)
        if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
            raise InputError('no text under "prompt"', where=where, hint=PROMPT_HINT)
        try:
            refuse_surrogates(value["prompt"])
        except InputError as error:
            raise InputError(error.what, where=where) from None
        prompts.append(value["prompt"])
    if not prompts:
        raise InputError("the file contains no prompts", where=path)
    return prompts


def generate_file(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    job: BatchJob,
    out: Path,
    *,
    fingerprint: dict[str, Any],
    events: Events = SILENT,
) -> None:
    """Write one line of JSON per prompt to `out`, which appears once it is complete.

    Finished groups are kept in a file next to it, with a header that contains the job and
    `fingerprint`: everything else that determines the text, such as the model and its precision.
    Raises UsageError if the unfinished file has another header.
    """
    unfinished = unfinished_path(out)
    header = toml_json.dumps(
        {"job": job.as_dict(), "prompts": len(prompts), **fingerprint},
        ascii_only=True,
        sort_keys=True,
    )
    lines = complete_lines(unfinished)
    if lines and lines[0] != header:
        raise UsageError(
            "was started with other prompts, options or weights",
            where=unfinished,
            hint="use {option:force} to start over",
        )
    size = GROUP_BATCHES * job.batch_size
    done = (len(lines) - 1) // size * size if lines else 0
    with atomic_write(unfinished, "w") as file:
        file.writelines(f"{line}\n" for line in (lines[: 1 + done] or [header]))
    n_ctx = model.config.n_ctx
    sample_count = len(prompts) * job.num_samples
    rows = min(job.batch_size, sample_count)
    passes = sample_count * job.max_tokens // rows
    compiled = worth_compiling(model.wte.weight.device, passes) or None
    engine = Engine(model, rows, compiled=compiled)
    with open(unfinished, "a", encoding="utf-8", newline="\n") as file:
        begin, tokens, truncated = time.monotonic(), 0, 0
        for first in range(done, len(prompts), size):
            samples = _sequences(tokenizer, prompts[first : first + size], first, job)
            finished = 0
            truncated += sum(len(sequences[0].prompt) > n_ctx for sequences in samples)
            for sequence in generate_sequences(
                model,
                (sequence for sequences in samples for sequence in sequences),
                job.params,
                batch_size=engine.rows,
                log_probs=True,
                engine=engine if engine.fixed else None,  # compiled once for every group
            ):
                finished, tokens = finished + 1, tokens + len(sequence.tokens)
                speed = round(tokens / max(1e-9, time.monotonic() - begin))
                prompts_done = first + finished / job.num_samples
                events.progress(
                    "sample", prompts_done, len(prompts), "prompts", tokens_per_second=speed
                )
            file.writelines(
                f"{_line(first + i, prompts[first + i], sequences)}\n"
                for i, sequences in enumerate(samples)
            )
            file.flush()
            os.fsync(file.fileno())
    with atomic_write(out, "w") as file:
        file.writelines(f"{line}\n" for line in complete_lines(unfinished)[1:])
    unfinished.unlink()
    events.finish("sample")
    if truncated:
        events.warn(
            f"longer than the model's context: {counted(truncated, 'prompt')}, of which it read "
            f"the last {counted(n_ctx, 'token')}"
        )


def sample_file(
    run: Path,
    prompts: Path,
    job: BatchJob,
    out: Path,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "auto",
    quantize: Quantize = "none",
    resume: bool = False,
    force: bool = False,
    events: Events = SILENT,
) -> None:
    """Write the samples of a file of prompts to `out` (`generate_file`), locked against others.

    `resume` continues an unfinished file, `force` replaces the output. Raises UsageError if `out`
    exists or is unfinished without either, or is a device or a pipe.
    """
    if written_through(out):
        raise UsageError(
            "the output is a device or a pipe, where unfinished work cannot be kept",
            where=out,
            hint="name a file",
        )
    with own_file(out, events=events):
        if out.is_symlink():
            out = Path(os.path.realpath(out))  # unfinished work is kept next to the file itself
        if resume and out.exists():
            events.info(f"{out} is complete: nothing to do")
            return
        claim_file(out, force=force)
        if unfinished_path(out).exists() and not resume:
            if not force:
                raise UsageError(
                    "is unfinished",
                    where=out,
                    hint="{option:resume} continues it, {option:force} starts over",
                )
            unfinished_path(out).unlink()
        if resume and not unfinished_path(out).exists():
            events.info(nothing_to_resume(out))
        texts = read_prompts(prompts)
        loaded = load(
            run,
            checkpoint=checkpoint,
            device=device,
            precision=precision,
            quantize=quantize,
            events=events,
        )
        fingerprint: dict[str, Any] = {
            "prompts_sha256": sha256(prompts),
            "precision": loaded.precision,
            "quantize": quantize,
            "device": loaded.device.type,
        }
        found = loaded.source.folder
        weights = found if found.is_file() else found / WEIGHTS
        if loaded.source.digest is not None:
            fingerprint |= {"step": loaded.source.step, "weights_sha256": loaded.source.digest}
        else:
            fingerprint["weights_sha256"] = sha256(weights) if weights.exists() else str(run)
        generate_file(
            loaded.model, loaded.tokenizer, texts, job, out, fingerprint=fingerprint, events=events
        )


def unfinished_path(out: Path) -> Path:
    """Return the path of the unfinished file for `out`."""
    return out.with_name(f".{out.name}.unfinished")


def _sequences(
    tokenizer: Tokenizer, prompts: Sequence[str], first: int, job: BatchJob
) -> list[list[TextSequence]]:
    """Return the samples of each prompt, the first of which is prompt number `first`."""
    return [
        [
            TextSequence(
                tokenizer,
                encode_prompt(tokenizer, prompt),
                max_tokens=job.max_tokens,
                generator=sample_generator(job.seed, number, first + i),
                stops=job.stops,
            )
            for number in range(job.num_samples)
        ]
        for i, prompt in enumerate(prompts)
    ]


def _line(index: int, prompt: str, sequences: Sequence[TextSequence]) -> str:
    samples = []
    for sequence in sequences:
        completion = sequence.completion()
        samples.append(
            {
                "text": completion.text,
                "tokens": completion.tokens,
                "log_probs": [round(value, 4) for value in completion.log_probs],
                "finish_reason": completion.finish_reason,
            }
        )
    return toml_json.dumps({"index": index, "prompt": prompt, "samples": samples})


def few_shot_prompt(instruction: str | None, examples: Sequence[str], prompt: str) -> str:
    """Return instruction, examples and prompt, one per line (GPT-3, figure 2.1)."""
    return "\n".join([*([instruction] if instruction else []), *examples, prompt])


def news_prompt(title: str, subtitle: str, articles: Sequence[str] = ()) -> str:
    """Return GPT-3's prompt for news articles (section 3.9.4).

    It consists of earlier articles, of which the paper gives three, then the title and subtitle of
    the article to write.
    """
    return "\n\n".join(
        [
            *(article.strip() for article in articles),
            f"Title: {title}\nSubtitle: {subtitle}\nArticle:",
        ]
    )


@dataclass(frozen=True, slots=True)
class PromptParts:
    """Parts of a prompt as the options give them; `text` assembles them."""

    instruction: str | None = None
    """Description of a task."""
    examples: list[str] | tuple[str, ...] = ()
    """Solved examples of the task."""
    title: str | None = None
    """Title of a news article to write."""
    subtitle: str | None = None
    """Subtitle of the article."""
    articles: list[Path] | tuple[Path, ...] = ()
    """Files of example articles."""

    def __post_init__(self) -> None:
        for name in ("examples", "articles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def text(self, prompt: str | None, read: Callable[[str | None], str]) -> str:
        """Return the whole prompt; `read` returns the prompt that is meant by `prompt`.

        Raises UsageError for parts that cannot be combined.
        """
        if self.title is None:
            if self.subtitle is not None or self.articles:
                raise UsageError(
                    "{option:subtitle} and {option:article} need {option:title}",
                    hint='name the article to write with {option:title} "..."',
                )
            return few_shot_prompt(self.instruction, self.examples, read(prompt))
        if prompt is not None or self.instruction or self.examples:
            raise UsageError(
                "{option:title} cannot be combined with a prompt",
                hint="an article is written from its title and subtitle alone",
            )
        articles = [read_text(path) for path in self.articles]
        return news_prompt(self.title, self.subtitle or "", articles)
