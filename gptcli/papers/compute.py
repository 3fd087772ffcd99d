"""Training compute of seventeen language models: GPT-3's Table D.1 (Brown et al. 2020) as printed.

The table leaves attention out and counts embeddings as parameters; one PF-day is 8.64e19 FLOP. T5
takes 3 FLOPs per parameter and token instead of 6, because encoder and decoder each process half of
the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperCompute:
    """A row of the table."""

    name: str
    pf_days: float
    flops: float
    """FLOPs of the whole training."""
    parameters: float
    tokens: float
    flops_per_parameter: int
    """FLOPs per parameter and token, forward and backward."""
    year: int
    """Year of the model's paper."""
    size: str = ""
    """Name in `models`, for GPT-3."""
    source: str = "GPT-3, Table D.1"
    date: str = "2020-05-28"


# fmt: off
TABLE_D1: tuple[PaperCompute, ...] = (
    #             name             PF-days   FLOPs    parameters tokens   each year  ours
    PaperCompute("T5-Small",       2.08,     1.80e20, 60e6,      1000e9, 3, 2019),
    PaperCompute("T5-Base",        7.64,     6.60e20, 220e6,     1000e9, 3, 2019),
    PaperCompute("T5-Large",       2.67e1,   2.31e21, 770e6,     1000e9, 3, 2019),
    PaperCompute("T5-3B",          1.04e2,   9.00e21, 3_000e6,   1000e9, 3, 2019),
    PaperCompute("T5-11B",         3.82e2,   3.30e22, 11_000e6,  1000e9, 3, 2019),
    PaperCompute("BERT-Base",      1.89,     1.64e20, 109e6,     250e9,  6, 2018),
    PaperCompute("BERT-Large",     6.16,     5.33e20, 355e6,     250e9,  6, 2018),
    PaperCompute("RoBERTa-Base",   1.74e1,   1.50e21, 125e6,     2000e9, 6, 2019),
    PaperCompute("RoBERTa-Large",  4.93e1,   4.26e21, 355e6,     2000e9, 6, 2019),
    PaperCompute("GPT-3 Small",    2.60,     2.25e20, 125e6,     300e9,  6, 2020,   "gpt3-small"),
    PaperCompute("GPT-3 Medium",   7.42,     6.41e20, 356e6,     300e9,  6, 2020,   "gpt3-medium"),
    PaperCompute("GPT-3 Large",    1.58e1,   1.37e21, 760e6,     300e9,  6, 2020,   "gpt3-large"),
    PaperCompute("GPT-3 XL",       2.75e1,   2.38e21, 1_320e6,   300e9,  6, 2020,   "gpt3-xl"),
    PaperCompute("GPT-3 2.7B",     5.52e1,   4.77e21, 2_650e6,   300e9,  6, 2020,   "gpt3-2.7B"),
    PaperCompute("GPT-3 6.7B",     1.39e2,   1.20e22, 6_660e6,   300e9,  6, 2020,   "gpt3-6.7B"),
    PaperCompute("GPT-3 13B",      2.68e2,   2.31e22, 12_850e6,  300e9,  6, 2020,   "gpt3-13B"),
    PaperCompute("GPT-3 175B",     3.64e3,   3.14e23, 174_600e6, 300e9,  6, 2020,   "gpt3"),
)
# fmt: on

# Of GPT-1 its authors print the compute (8 GPUs x 30 days x 12 TFLOP/s x 0.33) and the parameters;
# the tokens follow by 6ND.
GPT_1 = PaperCompute(
    "GPT-1", 0.96, 8.29e19, 116_534_784, 118.6e9, 6, 2018,
    source="OpenAI, Improving Language Understanding with Unsupervised Learning: 0.96 PF-days", date="2018-06-11",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """A training run with published size and tokens: 6·N·D FLOPs."""

    name: str
    year: int
    parameters: float
    """Active parameters, for a mixture of experts."""
    tokens: float
    source: str


# fmt: off
PUBLISHED_RUNS: tuple[PublishedRun, ...] = (
    #             name             year  parameters tokens   source
    PublishedRun("GPT-2 1.5B",     2019, 1.558e9,   10e9,    "assumed: one pass over 40 GB of text at 4 characters a token"),
    PublishedRun("Gopher 280B",    2021, 280e9,     300e9,   "Rae et al. 2021"),
    PublishedRun("OPT-175B",       2022, 175e9,     180e9,   "Zhang et al. 2022"),
    PublishedRun("Chinchilla 70B", 2022, 70e9,      1.4e12,  "Hoffmann et al. 2022"),
    PublishedRun("PaLM 540B",      2022, 540e9,     780e9,   "Chowdhery et al. 2022"),
    PublishedRun("Pythia 6.9B",    2023, 6.9e9,     300e9,   "Biderman et al. 2023"),
    PublishedRun("MPT-7B",         2023, 6.7e9,     1e12,    "MosaicML, Introducing MPT-7B, 2023-05-05"),
    PublishedRun("LLaMA 33B",      2023, 32.5e9,    1.4e12,  "Touvron et al. 2023, Table 2"),
    PublishedRun("Llama 2 13B",    2023, 13e9,      2e12,    "Touvron et al. 2023b, Table 1"),
    PublishedRun("Llama 3 70B",    2024, 70.6e9,    15e12,   "Llama 3 model card, 2024-04-18"),
    PublishedRun("DeepSeek-V3",    2024, 37e9,      14.8e12, "DeepSeek-AI 2024: 37B of 671B active"),
)
# fmt: on
