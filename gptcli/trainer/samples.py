"""What the model writes as it learns: `samples.jsonl`, from every checkpoint, in a thread that the
training does not wait for.
"""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from gptcli.events import Events
from gptcli.model.checkpoint_tensors import SavedModel
from gptcli.model.safetensors_io import assemble
from gptcli.model.transformer import GPT
from gptcli.runs.metrics import SAMPLES, MetricsLog
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.tokenizer import load_tokenizer
from gptcli.trainer.config import Run
from gptcli.trainer.follower import Follower

PROMPT, LENGTH = 16, 64  # tokens
RULES = SamplingParams(top_p=0.85)  # as GPT-3's released samples


class Sampler(Follower):
    """Samples on the CPU."""

    name = "samples"

    def __init__(self, run: Run, events: Events, *, upto: int) -> None:
        """Keeps the samples of steps up to `upto`."""
        super().__init__(events, upto=upto)
        self.run = run
        self.tokenizer = load_tokenizer(run.data)
        self.prompts = prompts(run)
        self.log = MetricsLog(run.out, before=upto + 1, name=SAMPLES)

    def work(self, folder: Path, step: int, tokens: int) -> None:
        texts = self._write(folder)
        if self.leaving.is_set():  # in the middle of one
            return
        for prompt, text in texts:
            self.log.write({"step": step, "tokens": tokens, "prompt": prompt, "text": text})

    def _write(self, folder: Path) -> list[tuple[str, str]]:
        """Prompt and continuation of each sample."""
        model = model_of(self.run, folder)
        eot = self.run.eot_id
        rows = [
            Draft(
                prompt,
                max_tokens=LENGTH,
                generator=sample_generator(self.run.train.seed, number),
                stop_id=eot,
                leaving=self.leaving,
            )
            for number, prompt in enumerate(self.prompts)
        ]
        for _ in generate_sequences(model, rows, RULES, batch_size=len(rows)):
            pass
        spell = self.tokenizer.decode
        return [
            (spell([token for token in row.prompt if token != eot]), spell(row.tokens))
            for row in rows
        ]


def model_of(run: Run, folder: Path) -> GPT:
    """The model of a checkpoint, on the CPU, for inference."""
    return assemble(dict(SavedModel(folder)), run.model)


class Draft(TokenSequence):
    """A sample that is left where it is as soon as the run ends."""

    def __init__(
        self,
        prompt: list[int],
        *,
        leaving: threading.Event,
        max_tokens: int,
        generator: torch.Generator,
        stop_id: int,
    ) -> None:
        super().__init__(prompt, max_tokens=max_tokens, generator=generator, stop_id=stop_id)
        self.leaving = leaving

    def append(self, token: int, log_prob: float | None = None) -> None:
        super().append(token, log_prob)
        if self.leaving.is_set():
            self.finish_reason = "length"


def prompts(run: Run) -> list[list[int]]:
    """The first is end-of-text alone, the others are from places in the validation text that lie
    equally far apart.
    """
    count = run.train.samples
    if read_manifest(run.data).tokens("val") <= PROMPT * count:
        return [[run.eot_id]]
    stream = open_split(run.data, "val", verify=False)
    places = [number * (len(stream) - PROMPT) // count for number in range(1, count)]
    return [[run.eot_id], *(stream[place : place + PROMPT].tolist() for place in places)]
