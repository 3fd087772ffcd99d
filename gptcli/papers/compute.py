"""Table D.1 of GPT-3 (Brown et al. 2020) as printed: what it took to train seventeen language models, a row a model.

The table leaves attention out and counts embeddings as parameters; one PF-day is 8.64e19 FLOP. T5 spends 3 FLOPs where the others
spend 6, because encoder and decoder each see half of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperCompute:
    name: str
    pf_days: float
    flops: float
    """In the whole of training."""
    parameters: float
    tokens: float
    flops_per_parameter: int
    """Of one token, forward and backward."""
    size: str = ""
    """Its name in `models`, for the GPT-3 rows."""


# fmt: off
TABLE_D1: tuple[PaperCompute, ...] = (
    #             name             PF-days   FLOPs    parameters tokens  each  ours
    PaperCompute("T5-Small",       2.08,     1.80e20, 60e6,      1000e9, 3),
    PaperCompute("T5-Base",        7.64,     6.60e20, 220e6,     1000e9, 3),
    PaperCompute("T5-Large",       2.67e1,   2.31e21, 770e6,     1000e9, 3),
    PaperCompute("T5-3B",          1.04e2,   9.00e21, 3_000e6,   1000e9, 3),
    PaperCompute("T5-11B",         3.82e2,   3.30e22, 11_000e6,  1000e9, 3),
    PaperCompute("BERT-Base",      1.89,     1.64e20, 109e6,     250e9,  6),
    PaperCompute("BERT-Large",     6.16,     5.33e20, 355e6,     250e9,  6),
    PaperCompute("RoBERTa-Base",   1.74e1,   1.50e21, 125e6,     2000e9, 6),
    PaperCompute("RoBERTa-Large",  4.93e1,   4.26e21, 355e6,     2000e9, 6),
    PaperCompute("GPT-3 Small",    2.60,     2.25e20, 125e6,     300e9,  6,   "gpt3-small"),
    PaperCompute("GPT-3 Medium",   7.42,     6.41e20, 356e6,     300e9,  6,   "gpt3-medium"),
    PaperCompute("GPT-3 Large",    1.58e1,   1.37e21, 760e6,     300e9,  6,   "gpt3-large"),
    PaperCompute("GPT-3 XL",       2.75e1,   2.38e21, 1_320e6,   300e9,  6,   "gpt3-xl"),
    PaperCompute("GPT-3 2.7B",     5.52e1,   4.77e21, 2_650e6,   300e9,  6,   "gpt3-2.7B"),
    PaperCompute("GPT-3 6.7B",     1.39e2,   1.20e22, 6_660e6,   300e9,  6,   "gpt3-6.7B"),
    PaperCompute("GPT-3 13B",      2.68e2,   2.31e22, 12_850e6,  300e9,  6,   "gpt3-13B"),
    PaperCompute("GPT-3 175B",     3.64e3,   3.14e23, 174_600e6, 300e9,  6,   "gpt3"),
)
# fmt: on
