"""Models of GPT-1 (Radford et al. 2018), GPT-2 (Radford et al. 2019, Table 2) and GPT-3 (Brown et
al. 2020, Table 2.1), one per row.

If the print contradicts itself, the row has the value that reproduces the paper's own parameter
counts (GPT-3, Table D.1): 13B is 5120 wide (printed 5140) and XL has 16 heads of 128 (printed 24).
"0.5M", "1M" and "2M" tokens are 2^19, 2^20 and 2^21; "3.2M" is 1,536 sequences of 2,048.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperModel:
    """Architecture, batch and learning rate of one model."""

    name: str
    aliases: tuple[str, ...]
    paper: str
    """"GPT-1", "GPT-2" or "GPT-3"."""
    n_layer: int
    d_model: int
    n_head: int
    n_ctx: int
    vocab_size: int = 50257
    attention: str
    """"dense", or "banded": alternating dense and locally banded layers."""
    parameters: int
    """Exact count, with embeddings, a tied head counted once."""
    printed: str
    """Parameter count as printed."""
    batch_tokens: int
    lr: float
    norm: str = "pre"
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
