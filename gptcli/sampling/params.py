"""How the next token is chosen from its logits: repetition penalty, temperature, top-k, top-p, in
this order, then one draw (after GPT-2's release).

Shapes: B sequences, V vocabulary. A logit of -inf is a token that cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptcli.errors import RunError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one generation. The default is the plain distribution. Raises UsageError where a
    value makes no sense.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 is more certain, above 1 more varied."""
    top_k: int | None = None
    """Draw among the k likeliest tokens, ties at the k-th kept."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities reach p together."""
    greedy: bool = False
    """Always the likeliest token; temperature, top-k and top-p then say nothing."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens that stand in the context
    already (Keskar et al. 2019).
    """

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(
                f"temperature is {self.temperature:g}",
                hint="above 0 it samples; {option:greedy} always takes the likeliest token",
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(
                f"top-k is {self.top_k}",
                hint="at least 1; {option:top_p} 1 draws from the whole vocabulary",
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(
                f"top-p is {self.top_p:g}", hint="above 0 and at most 1, for example 0.9"
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(
                f"repetition-penalty is {self.repetition_penalty:g}",
                hint="above 1 it discourages, for example 1.2",
            )


COLDEST = 1e-30  # below it, a logit divided by the temperature may exceed fp32
NUCLEUS = 2048  # candidates that top-p looks among before it sorts the whole vocabulary


def next_tokens(logits_BV: torch.Tensor, rules: Rules, uniform_B: torch.Tensor) -> torch.Tensor:
    """The next token of each sequence, (B,), by `rules`; `uniform_B` are the draws, in [0, 1), at
    which a greedy choice does not look.

    Raises RunError if a logit is not a number.
    """
    highest = logits_BV.max(dim=-1)
    if bool(highest.values.isnan().any()):
        raise RunError(
            "there are logits that are not numbers", hint="the model's weights are broken"
        )
    if rules.greedy:
        # the first of equals, as argmax takes, in a fifth of its time on a CPU
        return highest.indices
    found = candidates(logits_BV, rules)
    if found is None:
        return draw(filtered(logits_BV, rules), uniform_B)
    logits_BK, token_BK = found
    return token_BK.gather(1, draw(logits_BK, uniform_B)[:, None])[:, 0]


def candidates(logits_BV: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What `filtered` leaves, where that is little: the logits of K tokens and which they are, in
    the vocabulary's order, both (B, K).

    None where it may be much. To filter and sum a whole vocabulary takes a CPU as long as a layer
    or more.
    """
    if rules.top_k is None and rules.top_p in (None, 1):
        return None
    V = logits_BV.shape[1]
    logits_BV = tempered(logits_BV, rules.temperature)
    if rules.top_k is None:
        value_BK, token_BK = logits_BV.topk(min(NUCLEUS, V), dim=-1)
        total_B1 = weights(logits_BV).cumsum(dim=-1)[:, -1:]
        # of those equal to the last candidate, some may not be candidates
        surely_BK = value_BK > value_BK[:, -1:]
        if V > NUCLEUS and bool(
            (
                torch.where(surely_BK, weights(value_BK), 0.0).sum(dim=-1)
                < ((rules.top_p or 1) + 1e-4) * total_B1[:, 0]
            ).any()
        ):
            return None
    else:
        kth_B1 = logits_BV.topk(min(rules.top_k, V), dim=-1).values[:, -1:]
        value_BK, token_BK = logits_BV.topk(int((logits_BV >= kth_B1).sum(dim=-1).max()), dim=-1)
        value_BK = value_BK.masked_fill(value_BK < kth_B1, -torch.inf)
        total_B1 = None
    token_BK, order_BK = token_BK.sort(dim=-1)
    value_BK = value_BK.gather(1, order_BK)
    return (
        value_BK if rules.top_p is None else keep_top_p(value_BK, rules.top_p, total_B1)
    ), token_BK


def penalised(
    logits_BV: torch.Tensor, contexts: Sequence[Sequence[int]], penalty: float
) -> torch.Tensor:
    """Logits with the repetition penalty on what stands in each row's context already."""
    logits_BV = logits_BV.clone()
    for logits_V, context in zip(logits_BV, contexts, strict=True):
        seen_n = torch.tensor(sorted(set(context)), device=logits_V.device)
        value_n = logits_V[seen_n]
        logits_V[seen_n] = torch.where(value_n > 0, value_n / penalty, value_n * penalty)
    return logits_BV


def filtered(logits_BV: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Logits whose softmax is the distribution that `rules` sample from."""
    logits_BV = tempered(logits_BV, rules.temperature)
    if rules.top_k is not None:
        logits_BV = keep_top_k(logits_BV, rules.top_k)
    if rules.top_p is not None:
        logits_BV = keep_top_p(logits_BV, rules.top_p)
    return logits_BV


def tempered(logits_BV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits divided by the temperature, in fp32; the highest is moved to 0 first if they could
    overflow otherwise.
    """
    if temperature >= COLDEST:
        return logits_BV.float() / temperature
    below_BV = logits_BV.double() - logits_BV.double().amax(dim=-1, keepdim=True)
    return (below_BV / temperature).float()


def keep_top_k(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
    """-inf for all but the k highest logits; those equal to the k-th stay too."""
    kth_B1 = logits_BV.topk(min(k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)


def keep_top_p(
    logits_BV: torch.Tensor, p: float, total_B1: torch.Tensor | None = None
) -> torch.Tensor:
    """-inf for all but the likeliest tokens, as few as reach probability `p` together; the one that
    crosses it stays. Of equals, the first in the vocabulary comes first.

    `total_B1` is the sum of `weights` over the whole vocabulary, where these are not all of it.
    """
    if p == 1:  # rounding in the running sum must not cost the rarest tokens
        return logits_BV
    weight_BV = weights(logits_BV)
    if total_B1 is None:
        total_B1 = weight_BV.cumsum(dim=-1)[:, -1:]
    order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
    sorted_BV = weight_BV.gather(-1, order_BV)
    # the mass before each token: 0 for the first, which always stays
    likelier_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return logits_BV.masked_fill(
        (likelier_BV >= p * total_B1).gather(-1, order_BV.argsort(dim=-1)), -torch.inf
    )


def weights(logits_BV: torch.Tensor) -> torch.Tensor:
    """Probabilities but for a factor, the likeliest token's being 1, in fp64.

    Summed from left to right (`cumsum`), and not divided: then tokens that cannot be drawn change
    no digit, and a few candidates are filtered and drawn from exactly as the whole vocabulary is.
    """
    return (logits_BV.double() - logits_BV.amax(dim=-1, keepdim=True)).exp()


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """One token a row from softmax(logits), by inverting its distribution function at `uniform_B`.

    One number a draw, whatever device and batch it is made on, is what lets a seed fix the text.
    """
    cdf_BV = weights(logits_BV).cumsum(dim=-1)
    point_B1 = uniform_B.to(cdf_BV)[:, None] * cdf_BV[:, -1:]
    return torch.searchsorted(cdf_BV, point_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
