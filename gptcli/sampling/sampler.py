"""Samples of one prompt: beam search, best of N, speculative decoding or plain sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.sampling.beam import generate_by_beam_search
from gptcli.sampling.generate import (
    TextSequence,
    encode_prompt,
    generate_sequences,
    sample_generator,
)
from gptcli.sampling.load import Loaded, PrecisionChoice, load
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.speculative import generate_speculatively
from gptcli.sampling.streaming import Completion

SEPARATOR = "-" * 15
MAX_PARALLEL_SAMPLES = 16  # of one prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Loaded model with the options to sample from it."""

    loaded: Loaded
    """Model to sample from."""
    params: SamplingParams
    """Sampling parameters."""
    draft: Loaded | None = None
    """Smaller model for speculative decoding."""
    max_tokens: int = 200
    """Maximum length of a sample, in tokens."""
    num_samples: int = 1
    """Number of samples of a prompt."""
    stops: Sequence[str] = ()
    """Texts that end a sample."""
    beam: int | None = None
    """Width of a beam search; None to sample."""
    best_of: int | None = None
    """Number of samples of which only the one with the highest mean log-probability is kept."""

    def sample(
        self, text: str, *, seed: int, on_text: Callable[[str], None] | None = None
    ) -> list[Completion]:
        """Generate the samples of one prompt; `on_text` receives the prompt and their text.

        The first sample is streamed, the others follow when they are complete, each after a line
        of dashes. Without `on_text`, log-probabilities are computed.
        """
        show = on_text or _ignore
        tokens = encode_prompt(self.loaded.tokenizer, text)
        show(text)
        try:
            if self.beam is not None:
                generated = generate_by_beam_search(
                    self.loaded.model,
                    self.loaded.tokenizer,
                    tokens,
                    max_tokens=self.max_tokens,
                    width=self.beam,
                )
                show(generated.text)
                return [generated]
            sequences = [
                TextSequence(
                    self.loaded.tokenizer,
                    tokens,
                    max_tokens=self.max_tokens,
                    generator=sample_generator(seed, number),
                    stops=self.stops,
                    on_text=_ignore if number or self.best_of else show,
                )
                for number in range(self.best_of or self.num_samples)
            ]
            n_shown = 1  # the first one is streamed
            for _ in self._generate(sequences, log_probs=on_text is None or bool(self.best_of)):
                while (
                    not self.best_of
                    and n_shown < len(sequences)
                    and all(one.finish_reason for one in sequences[: n_shown + 1])
                ):
                    show(f"\n{SEPARATOR}\n{text}{sequences[n_shown].completion().text}")
                    n_shown += 1
            completions = [sequence.completion() for sequence in sequences]
            if self.best_of:
                completions = [max(completions, key=lambda one: one.mean_log_prob)]
                show(completions[0].text)
            return completions
        finally:  # after an interrupt too, the next output begins on a new line
            show("\n")

    def report(
        self, text: str, completions: list[Completion], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the report of `gpt sample --json` on the samples of a prompt.

        `settings` are the values of stop, seed and quantize.
        """
        known = {"max_tokens": self.max_tokens, "beam": self.beam, "best_of": self.best_of}
        known |= settings
        names = ("max_tokens", "stop", "seed", "beam", "best_of", "quantize")
        return {
            "step": self.loaded.source.step,
            "prompt": text,
            "prompt_tokens": encode_prompt(self.loaded.tokenizer, text),
            **asdict(self.params),
            **{name: known[name] for name in names},
            "device": self.loaded.device.type,
            "precision": self.loaded.precision,
            "samples": [
                asdict(one)
                | {"mean_log_prob": one.mean_log_prob, "tokens_per_second": one.tokens_per_second}
                for one in completions
            ],
        }

    def _generate(self, sequences: list[TextSequence], *, log_probs: bool) -> Iterable[object]:
        """Yield whenever a sequence is complete."""
        if self.draft is not None:
            return (
                generate_speculatively(
                    self.loaded.model, self.draft.model, one, self.params, log_probs=log_probs
                )
                for one in sequences
            )
        return generate_sequences(
            self.loaded.model,
            sequences,
            self.params,
            batch_size=min(len(sequences), MAX_PARALLEL_SAMPLES),
            log_probs=log_probs,
            max_len=len(sequences[0].prompt) + self.max_tokens,
        )


def load_draft(
    folder: Path,
    loaded: Loaded,
    *,
    device: str,
    precision: PrecisionChoice,
    events: Events = SILENT,
) -> Loaded:
    """Load a draft model for `loaded`. Raises InputError if their tokenizers differ."""
    draft = load(folder, device=device, precision=precision, events=events)
    if draft.tokenizer.sha256 != loaded.tokenizer.sha256:
        raise InputError(
            "the draft run has another tokenizer",
            where=folder,
            hint="use a draft run that was trained with the same tokenizer",
        )
    return draft


def _ignore(text: str) -> None:
    """Ignore text that is shown later, or not at all."""
