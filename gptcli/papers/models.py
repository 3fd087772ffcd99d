"""Models of GPT-1 (Radford et al. 2018), GPT-2 (Radford et al. 2019, Table 2) and GPT-3 (Brown et
al. 2020, Table 2.1), one per row.

If the print contradicts itself, the row has the value that reproduces the paper's own parameter
counts (GPT-3, Table D.1): 13B is 5120 wide (printed 5140) and XL has 16 heads of 128 (printed 24).
"0.5M", "1M" and "2M" tokens are 2^19, 2^20 and 2^21; "3.2M" is 1,536 sequences of 2,048.

Then their training: schedules in tokens, Adam's constants and GPT-3's mixture (Brown et al. 2020,
Table 2.2) as printed. And the training compute of seventeen language models: GPT-3's Table D.1 as
printed. It leaves attention out and counts embeddings as parameters; one PF-day is 8.64e19 FLOP. T5
takes 3 FLOPs per parameter and token instead of 6, because encoder and decoder each process half of
the tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class PaperModel(NamedTuple):
    """Architecture, batch and learning rate of one model."""

    name: str
    aliases: tuple[str, ...]
    paper: str
    """"GPT-1", "GPT-2" or "GPT-3"."""
    n_layer: int
    d_model: int
    n_head: int
    n_ctx: int
    attention: str
    """"dense", or "banded": alternating dense and locally banded layers."""
    parameters: int
    """Exact count, with embeddings, a tied head counted once."""
    printed: str
    """Parameter count as printed."""
    batch_tokens: int
    lr: float
    vocab_size: int = 50257
    norm: Literal["pre", "post"] = "pre"
    """Position of LayerNorm: see `gptcli.model.config`."""
    dropout: float = 0.0


def _gpt2(
    name: str,
    aliases: str,
    layers: int,
    width: int,
    heads: int,
    parameters: int,
    printed: str,
    lr: float,
) -> PaperModel:
    # Batch: 512 sequences of 1,024 (section 2.3). The learning rate was tuned by hand on held-out
    # data and is unpublished: these are GPT-3's for the nearest size, an assumption.
    return PaperModel(
        name=name, aliases=tuple(aliases.split()), paper="GPT-2", n_layer=layers, d_model=width, n_head=heads, n_ctx=1024,
        attention="dense", parameters=parameters, printed=printed, batch_tokens=512 * 1024, lr=lr,
    )  # fmt: skip


def _gpt3(
    name: str,
    aliases: str,
    layers: int,
    width: int,
    heads: int,
    batch: int,
    lr: float,
    parameters: int,
    printed: str,
) -> PaperModel:
    return PaperModel(
        name=name, aliases=tuple(aliases.split()), paper="GPT-3", n_layer=layers, d_model=width, n_head=heads, n_ctx=2048,
        attention="banded", parameters=parameters, printed=printed, batch_tokens=batch, lr=lr,
    )  # fmt: skip


# fmt: off
MODELS: tuple[PaperModel, ...] = (
    #     name            aliases              layers width heads        parameters  printed  lr
    _gpt2("gpt2",         "gpt2-small 124M 117M",  12,  768, 12,     124_439_808, "117M",  6.0e-4),
    _gpt2("gpt2-medium",  "355M 345M",             24, 1024, 16,     354_823_168, "345M",  3.0e-4),
    _gpt2("gpt2-large",   "774M 762M",             36, 1280, 20,     774_030_080, "762M",  2.5e-4),
    _gpt2("gpt2-xl",      "1558M 1542M 1.5B",      48, 1600, 25,   1_557_611_200, "1542M", 2.0e-4),
    #     name            aliases              layers width heads   batch      lr            parameters   printed
    _gpt3("gpt3-small",   "125M",              12,    768, 12,     2**19, 6.0e-4,     125_226_240, "125M"),
    _gpt3("gpt3-medium",  "350M",              24,   1024, 16,     2**19, 3.0e-4,     355_871_744, "350M"),
    _gpt3("gpt3-large",   "760M",              24,   1536, 16,     2**19, 2.5e-4,     760_300_032, "760M"),
    _gpt3("gpt3-xl",      "1.3B",              24,   2048, 16,     2**20, 2.0e-4,   1_315_723_264, "1.3B"),
    _gpt3("gpt3-2.7B",    "2.7B",              32,   2560, 32,     2**20, 1.6e-4,   2_651_553_280, "2.7B"),
    _gpt3("gpt3-6.7B",    "6.7B",              32,   4096, 32,     2**21, 1.2e-4,   6_658_404_352, "6.7B"),
    _gpt3("gpt3-13B",     "13B",               40,   5120, 40,     2**21, 1.0e-4,  12_853_386_240, "13B"),
    _gpt3("gpt3",         "175B gpt3-175B",    96,  12288, 96, 1536*2048, 0.6e-4, 174_604_259_328, "175B"),
    # GPT-1, section 4.1: post-norm, 64 sequences of 512, dropout 0.1. The paper prints no count;
    # GPT-2's Table 2 calls it 117M.
    PaperModel(
        name="gpt1", aliases=("openai-gpt",), paper="GPT-1", n_layer=12, d_model=768, n_head=12, n_ctx=512, vocab_size=40478,
        attention="dense", norm="post", dropout=0.1, parameters=116_534_784, printed="117M", batch_tokens=64 * 512, lr=2.5e-4,
    ),
)
# fmt: on


class PaperCompute(NamedTuple):
    """A row of Table D.1."""

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
    """Name in MODELS, for GPT-3."""
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


class PublishedRun(NamedTuple):
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


class PaperTraining(NamedTuple):
    """Recipe of one paper."""

    tokens: int
    warmup_tokens: int
    """Length of the learning rate's linear warm-up."""
    decay_tokens: int
    """End of the cosine decay; the learning rate stays at `min_lr_ratio` times its peak afterwards.
    """
    min_lr_ratio: float
    ramp_tokens: int
    """The batch grows linearly from `ramp_from` to its full size over these tokens; 0 for no ramp.
    """
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
