"""Training recipes of GPT-1, GPT-2 and GPT-3: schedules in tokens and Adam's constants.
And GPT-3's training mixture, Table 2.2 (Brown et al. 2020), as printed.

Batch and learning rate depend on the size: see `models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTraining:
    """Recipe of one paper."""

    tokens: int
    warmup_tokens: int
    """Length of the learning rate's linear warm-up."""
    decay_tokens: int
    """End of the cosine decay; the learning rate stays at `min_lr_ratio` times its peak afterwards."""
    min_lr_ratio: float
    ramp_tokens: int
    """The batch grows linearly from `ramp_from` to its full size over these tokens; 0 for no ramp."""
    ramp_from: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float


# GPT-3, Appendix B. The ramp runs over 4 to 12 billion tokens "depending on the model size", the
# mapping unpublished: here 4B below 2.7B parameters, 8B up to 13B and 12B for 175B (RAMP_TOKENS),
# an assumption.
GPT3_TRAINING = PaperTraining(
    tokens=300_000_000_000, warmup_tokens=375_000_000, decay_tokens=260_000_000_000, min_lr_ratio=0.1,
    ramp_tokens=4_000_000_000, ramp_from=32_000, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
)  # fmt: skip
RAMP_TOKENS = {
    "gpt3-2.7B": 8_000_000_000,
    "gpt3-6.7B": 8_000_000_000,
    "gpt3-13B": 8_000_000_000,
    "gpt3": 12_000_000_000,
}

# GPT-2 publishes its batch (512 sequences) and little else. WebText is 40 GB, 10 billion tokens at
# 4 characters a token; one pass over it, with GPT-3's schedule in proportion, no ramp and GPT-3's
# optimizer, is an assumption.
GPT2_TRAINING = PaperTraining(
    tokens=10_000_000_000, warmup_tokens=12_500_000, decay_tokens=10_000_000_000, min_lr_ratio=0.1,
    ramp_tokens=0, ramp_from=0, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
)  # fmt: skip

# GPT-1, section 4.1: 100 epochs of BooksCorpus, 2,000 updates of warm-up (64 x 512 tokens each), a
# cosine to 0, weight decay 0.01. Its tokens are unpublished: 1.186 billion an epoch are what its
# authors' 0.96 PF-days make by 6ND, and 1.2 to each of the 985 million words that Zhu et al. (2015)
# count. Adam's constants and the clip are those of the released fine-tuning code.
GPT1_TRAINING = PaperTraining(
    tokens=100 * 1_186_000_000, warmup_tokens=2000 * 64 * 512, decay_tokens=100 * 1_186_000_000, min_lr_ratio=0.0,
    ramp_tokens=0, ramp_from=0, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0,
)  # fmt: skip
TRAINING = {"GPT-1": GPT1_TRAINING, "GPT-2": GPT2_TRAINING, "GPT-3": GPT3_TRAINING}


class Component(NamedTuple):
    """One data set of the mixture."""

    tokens: float
    """Tokens in the data set."""
    weight: float
    """Percentage of the training mixture; the printed ones sum to 101."""
    epochs: float
    """Epochs over 300 billion training tokens, as printed."""


GPT3_MIXTURE = {
    "common_crawl": Component(410e9, 60, 0.44),
    "webtext2": Component(19e9, 22, 2.9),
    "books1": Component(12e9, 8, 1.9),
    "books2": Component(55e9, 8, 0.43),
    "wikipedia": Component(3e9, 3, 3.4),
}
GPT3_MIXTURE_TOKENS = 300e9
