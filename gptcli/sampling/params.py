"""Choose the next token from logits: repetition penalty, temperature, top-k, top-p, then one draw.

The order is that of GPT-2's release. Shapes: B sequences, K candidate tokens, V vocabulary. A token
whose logit is -inf cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptcli.errors import RunError, UsageError
from gptcli.sampling.defaults import TEMPERATURE, TOP_K

MIN_FP32_TEMPERATURE = 1e-30  # below it, a logit divided by the temperature may exceed fp32
MAX_TOP_P_CANDIDATES = 2048  # tokens that top-p examines before it sorts the whole vocabulary

PRESETS: dict[str, dict[str, Any]] = {
    # The conditional samples of GPT-2's release.
    "gpt2": {"temperature": 1.0, "top_k": 40},
    # The unconditional samples that GPT-3's authors released.
    "gpt3": {"temperature": 1.0, "top_p": 0.85, "max_tokens": 2048},
    # News articles of about 200 words (GPT-3, section 3.9.4). Their sampling parameters are
    # unpublished; these are those of the released samples.
    "news": {"temperature": 1.0, "top_p": 0.85, "max_tokens": 270, "stop": ["\nTitle: "]},
}
"""Sampling options that the papers used, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters; the defaults sample from the model's distribution unchanged.

    Raises UsageError if a value is out of range.
    """

    temperature: float = TEMPERATURE
    """Divisor of the logits: below 1 the text is more predictable, above 1 more varied."""
    top_k: int | None = None
    """Number of most probable tokens to sample from; tokens tied with the k-th are kept."""
    top_p: float | None = None
    """Probability mass to sample from: the fewest tokens that together reach it are kept."""
    greedy: bool = False
    """Always take the most probable token; temperature, top-k and top-p have no effect."""
    repetition_penalty: float = 1.0
    """Factor on the logits of tokens already in the context: divides positive logits and
    multiplies negative ones (Keskar et al. 2019).
    """

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(
                f"temperature is {self.temperature:g}",
                hint="use a value above 0, or {option:greedy} for the most probable token",
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(
                f"top-k is {self.top_k}",
                hint="use at least 1; {option:top_p} 1 samples from the whole vocabulary",
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(
                f"top-p is {self.top_p:g}", hint="use a value above 0 and at most 1, such as 0.9"
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(
                f"repetition-penalty is {self.repetition_penalty:g}",
                hint="use a value above 0; above 1 discourages repetition, for example 1.2",
            )


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters of options; without any, the TOP_K most probable tokens.

    Temperature 0 is greedy, whatever top-k and top-p are: its limit is the most probable token.
    Raises UsageError for options that cannot be combined.
    """
    penalty = values.get("repetition_penalty", 1.0)
    is_cold = values.get("temperature") == 0 and "beam" not in values
    if not (values["greedy"] or is_cold or "beam" in values):
        top_k = values.get("top_k")
        if top_k is None and "top_p" not in values:
            top_k = TOP_K
        return SamplingParams(
            temperature=values.get("temperature", TEMPERATURE),
            top_k=top_k,
            top_p=values.get("top_p"),
            repetition_penalty=penalty,
        )
    deterministic = "{option:greedy}" if values["greedy"] else "{option:beam}"
    for name in ("temperature", "top_k", "top_p"):
        if name in values and not is_cold:
            raise UsageError(
                f"{deterministic} cannot be combined with {{option:{name}}}",
                hint=f"leave out {deterministic} to sample, or {{option:{name}}}",
            )
    for name in ("num_samples", "best_of"):
        if (values["greedy"] or is_cold) and values.get(name, 1) > 1:
            deterministic = "{option:temperature} 0" if is_cold else "{option:greedy}"
            raise UsageError(
                f"{deterministic} cannot be combined with {{option:{name}}} {values[name]}",
                hint="all greedy samples have the same text",
            )
    if "beam" in values and (penalty != 1 or values["greedy"] or values["stop"]):
        raise UsageError(
            "{option:beam} uses the model's probabilities unchanged",
            hint="leave out {option:greedy}, {option:repetition_penalty} and {option:stop}",
        )
    return SamplingParams(greedy=True, repetition_penalty=penalty)


def next_tokens(
    logits_BV: torch.Tensor, params: SamplingParams, uniform_B: torch.Tensor
) -> torch.Tensor:
    """Return the next token of each sequence, (B,).

    `uniform_B` contains one random number in [0, 1) per sequence; greedy decoding ignores it.
    Raises RunError as `greedy_tokens` does.
    """
    greedy_B = greedy_tokens(logits_BV)
    if params.greedy:
        return greedy_B
    found = top_candidates(logits_BV, params)
    if found is None:
        return draw(filter_logits(logits_BV, params), uniform_B)
    logits_BK, token_BK = found
    return token_BK.gather(1, draw(logits_BK, uniform_B)[:, None])[:, 0]


def greedy_tokens(logits_BV: torch.Tensor) -> torch.Tensor:
    """Return the token with the highest logit of each sequence, the first of equal ones, (B,).

    Every way to generate calls this for the logits that it reads, because nothing can be chosen by
    broken ones. Raises RunError if a logit is NaN or infinite, or if all are minus infinity.
    """
    highest = logits_BV.max(dim=-1)  # like argmax, in a fifth of its time on a CPU
    if not bool(highest.values.isfinite().all()):
        raise RunError(
            "the model's logits are not numbers (NaN or infinity)",
            hint="the model's weights are broken",
        )
    return highest.indices


def top_candidates(
    logits_BV: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the logits and ids of the tokens that `filter_logits` keeps, both (B, K), if few.

    Tokens are in the vocabulary's order. Returns None if K may be large: filtering and summing a
    whole vocabulary takes a CPU as long as a transformer layer or more.
    """
    if params.top_k is None and params.top_p in (None, 1):
        return None
    V = logits_BV.shape[1]
    logits_BV = apply_temperature(logits_BV, params.temperature)
    if params.top_k is None:
        value_BK, token_BK = logits_BV.topk(min(MAX_TOP_P_CANDIDATES, V), dim=-1)
        total_B1 = weights(logits_BV).cumsum(dim=-1)[:, -1:]
        # Some tokens with the same logit as the last candidate may not be candidates.
        is_above_last_BK = value_BK > value_BK[:, -1:]
        if V > MAX_TOP_P_CANDIDATES and bool(
            (
                torch.where(is_above_last_BK, weights(value_BK), 0.0).sum(dim=-1)
                < ((params.top_p or 1) + 1e-4) * total_B1[:, 0]
            ).any()
        ):
            return None
    else:
        kth_B1 = logits_BV.topk(min(params.top_k, V), dim=-1).values[:, -1:]
        value_BK, token_BK = logits_BV.topk(int((logits_BV >= kth_B1).sum(dim=-1).max()), dim=-1)
        value_BK = value_BK.masked_fill(value_BK < kth_B1, -torch.inf)
        total_B1 = None
    token_BK, order_BK = token_BK.sort(dim=-1)
    value_BK = value_BK.gather(1, order_BK)
    if params.top_p is not None:
        value_BK = apply_top_p(value_BK, params.top_p, total_B1)
    return value_BK, token_BK


def apply_repetition_penalty(
    logits_BV: torch.Tensor, contexts: Sequence[Sequence[int]], penalty: float
) -> torch.Tensor:
    """Return logits with the penalty applied to the tokens in each sequence's context."""
    logits_BV = logits_BV.clone()
    for logits_V, context in zip(logits_BV, contexts, strict=True):
        seen_n = torch.tensor(sorted(set(context)), device=logits_V.device)
        value_n = logits_V[seen_n]
        logits_V[seen_n] = torch.where(value_n > 0, value_n / penalty, value_n * penalty)
    return logits_BV


def filter_logits(logits_BV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return logits whose softmax is the distribution that `params` sample from, (B, V)."""
    logits_BV = apply_temperature(logits_BV, params.temperature)
    if params.top_k is not None:
        logits_BV = apply_top_k(logits_BV, params.top_k)
    if params.top_p is not None:
        logits_BV = apply_top_p(logits_BV, params.top_p)
    return logits_BV


def apply_temperature(logits_BV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the logits divided by the temperature, in fp32.

    If the quotient could overflow, the highest logit of each sequence is shifted to 0 first.
    """
    if temperature >= MIN_FP32_TEMPERATURE:
        return logits_BV.float() / temperature
    below_BV = logits_BV.double() - logits_BV.double().amax(dim=-1, keepdim=True)
    return (below_BV / temperature).float()


def apply_top_k(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
    """Return logits, (B, V), with all but the k highest at -inf; those equal to the k-th are kept."""
    kth_B1 = logits_BV.topk(min(k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)


def apply_top_p(
    logits_BV: torch.Tensor, p: float, total_B1: torch.Tensor | None = None
) -> torch.Tensor:
    """Keep the fewest most probable tokens whose probabilities sum to `p`; set the rest to -inf.

    The token that crosses `p` is kept. Among equal logits, the first in the vocabulary ranks first.
    `total_B1` is the sum of `weights` over the whole vocabulary, if `logits_BV` is a part of it.
    """
    if p == 1:  # rounding in the running sum must not remove the rarest tokens
        return logits_BV
    weight_BV = weights(logits_BV)
    if total_B1 is None:
        total_B1 = weight_BV.cumsum(dim=-1)[:, -1:]
    order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
    sorted_BV = weight_BV.gather(-1, order_BV)
    # The mass before each token is 0 for the first, which is therefore always kept.
    mass_before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return logits_BV.masked_fill(
        (mass_before_BV >= p * total_B1).gather(-1, order_BV.argsort(dim=-1)), -torch.inf
    )


def weights(logits_BV: torch.Tensor) -> torch.Tensor:
    """Return unnormalized probabilities in fp64, scaled so that the most probable token has 1.

    They are summed from left to right (`cumsum`) and never divided, so that tokens that cannot be
    drawn change no digit: a few candidates are filtered and sampled exactly like the whole
    vocabulary.
    """
    return (logits_BV.double() - logits_BV.amax(dim=-1, keepdim=True)).exp()


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Sample one token per sequence from softmax(logits) by inverse transform sampling, (B,).

    One random number per token, whatever the device and the batch, makes the text depend on the
    seed alone.
    """
    cdf_BV = weights(logits_BV).cumsum(dim=-1)
    point_B1 = uniform_B.to(cdf_BV)[:, None] * cdf_BV[:, -1:]
    return torch.searchsorted(cdf_BV, point_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
