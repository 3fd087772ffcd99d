"""Callbacks that evaluate the model as it trains: validation loss, tasks, and text samples."""

from __future__ import annotations

import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptcli.model.safetensors_io import assemble
from gptcli.model.source import SAMPLES
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.runs.metrics import Line, MetricsLog
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import Mixture, TokenStream, open_order, open_split
from gptcli.tokenizer.load import load_tokenizer
from gptcli.trainer.callbacks import (
    BackgroundCallback,
    Callback,
    RunProgress,
    SavedCheckpoint,
)
from gptcli.trainer.checkpoint import Checkpoints, read_best, write_best
from gptcli.trainer.config import Run
from gptcli.trainer.optimizer import product_dtype
from gptcli.trainer.step import TrainStep

PROMPT_TOKENS, SAMPLE_TOKENS = 16, 64
SAMPLING = SamplingParams(top_p=0.85)  # as GPT-3's released samples


class SequentialWindows:
    """Windows of a token stream in their order, for validation."""

    def __init__(self, stream: TokenStream, n_ctx: int) -> None:
        self.stream, self.n_ctx = stream, n_ctx
        self.windows = (len(stream) - 1) // n_ctx
        """Number of whole windows in the stream."""

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of windows `first` to `first + count`, (count, n_ctx) int64."""
        span = self.stream[first * self.n_ctx : (first + count) * self.n_ctx + 1].astype(np.int64)
        return span[:-1].reshape(count, self.n_ctx), span[1:].reshape(count, self.n_ctx)


ValidationOrder = SequentialWindows | Mixture


def open_validations(run: Run) -> dict[str, ValidationOrder]:
    """Open the validation windows of the run's data, its further sets and its sources, by metric.

    The metric of a further set or source is `val_loss_NAME`.

    Data with less than one window is left out.
    """
    folders = {"val_loss": run.data, **{f"val_loss_{name}": run.val[name] for name in run.val}}
    opened = {name: open_validation(run, folder) for name, folder in folders.items()}
    manifest, n_ctx = read_manifest(run.data), run.model.n_ctx
    for source in manifest.shares("val") if run.val_by_source else ():
        if source is not None and manifest.tokens("val", source) > n_ctx:
            stream = open_split(run.data, "val", source=source, verify=False)
            opened[f"val_loss_{source}"] = SequentialWindows(stream, n_ctx)
    return {name: order for name, order in opened.items() if order is not None}


def open_validation(run: Run, data: Path | None = None) -> ValidationOrder | None:
    """Open the validation windows: in their order or, with several sources, mixed as in training.

    Those of `data`, or else of the run's. Return None if a source has less than one window of
    validation tokens.
    """
    data = run.data if data is None else data
    manifest, n_ctx = read_manifest(data), run.model.n_ctx
    sources = list(manifest.shares("val"))
    if len(sources) < 2:
        if manifest.tokens("val") <= n_ctx:
            return None
        return SequentialWindows(open_split(data, "val", verify=False), n_ctx)
    if min(manifest.tokens("val", name) for name in sources) <= n_ctx:
        return None
    order = open_order(data, "val", n_ctx, seed=0, verify=False)
    assert isinstance(order, Mixture)
    return order


class Validation(Callback):
    """Callback that measures validation losses, on the same windows every time."""

    main_only = False

    def __init__(
        self, progress: RunProgress, train_step: TrainStep, orders: dict[str, ValidationOrder]
    ) -> None:
        """Measure the loss on each of `orders`, by the names of their metrics."""
        super().__init__(progress)
        self.train_step, self.orders = train_step, orders
        self.windows = max(1, progress.run.train.eval_tokens // progress.run.model.n_ctx)

    def on_evaluation(self, line: Line) -> None:
        """Add the losses to the line if an evaluation is due."""
        train = self.progress.run.train
        if not self.progress.is_due(train.eval_every):
            return
        for name, order in self.orders.items():
            windows = min(order.windows, self.windows)
            line[name] = self.train_step.validation_loss(order, windows, train.micro_batch)
        self.progress.val_loss = line.get("val_loss", self.progress.val_loss)


class BestCheckpoint(Callback):
    """Callback that keeps the checkpoint with the best value of a metric."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.metric = progress.run.train.keep_best or "val_loss"
        self.sign = -1 if re.search("loss|perplexity|bits", self.metric) else 1
        self.is_missing = False

    def on_record(self, line: Line) -> None:
        """Compare the step's value, if it has a checkpoint, with that of the best one."""
        progress = self.progress
        out, step = progress.run.out, line["step"]
        if not progress.is_due(progress.run.train.checkpoint_every):
            return
        value = line.get(self.metric)
        if value is None:
            if not (self.is_missing or self.metric in line):
                self.is_missing = True
                progress.events.warn(
                    f"{{option:keep_best}}: step {step:,} has no {self.metric}: it is measured every "
                    f"{counted(progress.run.train.eval_every, 'step')}, checkpoints are written "
                    "every "
                    f"{progress.run.train.checkpoint_every:,}"
                )
        elif math.isfinite(value):
            best = read_best(out).get("value")
            if best is None or self.sign * value > self.sign * best:
                write_best(out, step, self.metric, value)


class EarlyStop(Callback):
    """Callback that ends a run whose validation loss has had no new minimum for a while."""

    main_only = False
    state_key = "early_stop"

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.lowest: float | None = None
        """Lowest validation loss so far."""
        self.since = 0
        """Measurements since then."""

    def on_evaluation(self, line: Line) -> None:
        """Count a measurement; end the run after too many without a new minimum."""
        loss, progress = line.get("val_loss"), self.progress
        if loss is None:
            return
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.since = loss, 0
            return
        self.since += 1
        if self.since >= progress.run.train.stop_early and not progress.is_finished:
            progress.ended = True
            progress.events.info(
                f"ended early at step {line['step']:,}: {self.since:,} measurements without a "
                f"validation loss below {self.lowest:.4f}"
            )

    def state_dict(self) -> list[float | None]:
        """Return the minimum and the measurements since."""
        return [self.lowest, self.since]

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on from a checkpoint's."""
        self.lowest, self.since = state[0], int(state[1])


class TaskEvaluation(Callback):
    """Callback that adds the metrics of `Run.measure` at every checkpoint."""

    main_only = False

    def __init__(self, progress: RunProgress, checkpoints: Checkpoints) -> None:
        super().__init__(progress)
        self.checkpoints = checkpoints

    def on_evaluation(self, line: Line) -> None:
        """Measure on the main rank while the other ranks wait, if a checkpoint is due."""
        run, context = self.progress.run, self.progress.context
        if run.measure is None or not self.progress.is_due(run.train.checkpoint_every):
            return
        self.checkpoints.wait()  # the checkpoint has the whole model, under any layout
        if context.is_main:
            model = load_checkpoint_model(run, self.progress.checkpoint.folder)
            if context.device.type != "cpu":  # a second model beside the one in training
                model = model.to(product_dtype(run.train.precision))
            line |= run.measure(model.to(context.device))
        self.checkpoints.barrier()


class SampleWriter(BackgroundCallback):
    """Callback that samples texts from every checkpoint, into samples.jsonl."""

    product = "samples"

    def __init__(self, progress: RunProgress) -> None:
        """Keep the samples of steps up to the one that is resumed."""
        super().__init__(progress)
        run, done = progress.run, progress.position.step
        self.run = run
        self.tokenizer = load_tokenizer(run.data)
        self.prompts = sample_prompts(run)
        self.log = MetricsLog(run.out, before=done + 1, name=SAMPLES)

    def before_checkpoint(self) -> None:
        """Bring all samples to disk: a resume continues them."""
        self.log.sync()

    def on_end(self, *, interrupted: bool) -> None:
        """Wait for the samples of the finished model."""
        if not interrupted:
            self.finish()

    def process(self, checkpoint: SavedCheckpoint) -> None:
        """Write the samples of one checkpoint; none at all if cancelled on the way."""
        samples = self._sample(checkpoint.folder)
        if self.cancelled.is_set():
            return
        at = {"step": checkpoint.step, "tokens": checkpoint.tokens}
        for prompt, text in samples:
            self.log.write({**at, "prompt": prompt, "text": text})

    def _sample(self, folder: Path) -> list[tuple[str, str]]:
        """Return prompt and continuation of each sample."""
        model = load_checkpoint_model(self.run, folder)
        eot = self.run.eot_id
        sequences = [
            _CancellableSequence(
                prompt,
                max_tokens=SAMPLE_TOKENS,
                generator=sample_generator(self.run.train.seed, index),
                stop_id=eot,
                cancelled=self.cancelled,
            )
            for index, prompt in enumerate(self.prompts)
        ]
        for _ in generate_sequences(model, sequences, SAMPLING, batch_size=len(sequences)):
            pass
        to_text = self.tokenizer.decode
        # the end-of-text that begins a document is no text; one between two documents separates
        return [
            (to_text(row.prompt[row.prompt[0] == eot :]), to_text(row.tokens)) for row in sequences
        ]


class _CancellableSequence(TokenSequence):
    """Sequence that ends at once when the training does."""

    def __init__(
        self,
        prompt: list[int],
        *,
        cancelled: threading.Event,
        max_tokens: int,
        generator: torch.Generator,
        stop_id: int,
    ) -> None:
        super().__init__(prompt, max_tokens=max_tokens, generator=generator, stop_id=stop_id)
        self.cancelled = cancelled

    def append(self, token: int, log_prob: float | None = None) -> None:
        """Append a token; it is the last one once `cancelled` is set."""
        super().append(token, log_prob)
        if self.cancelled.is_set():
            self.finish_reason = "length"


def sample_prompts(run: Run) -> list[list[int]]:
    """Return the prompts: end-of-text, then PROMPT_TOKENS from evenly spaced validation text.

    With too little validation text there is only the first.
    """
    count = run.train.samples
    if read_manifest(run.data).tokens("val") <= PROMPT_TOKENS * count:
        return [[run.eot_id]]
    stream = open_split(run.data, "val", verify=False)
    starts = [index * (len(stream) - PROMPT_TOKENS) // count for index in range(1, count)]
    return [[run.eot_id], *(stream[start : start + PROMPT_TOKENS].tolist() for start in starts)]


def load_checkpoint_model(run: Run, folder: Path) -> GPT:
    """Return the model of a checkpoint, on the CPU and in inference mode."""
    return assemble(dict(CheckpointStateDict(folder)), run.model)
