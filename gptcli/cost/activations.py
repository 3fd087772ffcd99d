"""What a layer keeps of its forward pass for the backward pass (Korthikanti et al. 2022, "Reducing
activation recomputation").

Bytes a token, in units of the width C, with e bytes an element and r bytes an element of the
residual stream:

    inputs of the two norms       2r              both dropouts' masks      2, where anything is dropped
    inputs of qkv and of fc       2e              q, k, v                   3e
    output of attention           e               before and after GELU     4e + 4e
    scores, a row of T a head     (2e+1)·H·T/C    softmax, mask and what it leaves: only where attention is not fused

With e = r = 2 and dropout that is the paper's 34 + 5·H·T/C. Tensor parallelism divides q, k, v,
attention, GELU and the scores; sequence parallelism the rest too.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.model.config import ModelConfig

RECOMPUTE = ("none", "selective", "full")
# of pipeline stages, and how many a process has in each
SCHEDULES = {"1f1b": 1, "gpipe": 1, "interleaved1f1b": 2, "loopedbfs": 2}


def padded_micro_batches(micro_batches: int, pp: int, schedule: str) -> int:
    """Return how many micro-batches a pipeline runs for `micro_batches`, padded with empty ones.

    Every stage needs at least one at a time; interleaved schedules run rounds of `pp`.
    """
    if SCHEDULES[schedule] == 1:
        return max(micro_batches, pp)
    return -(-micro_batches // pp) * pp


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPolicy:
    """How much a layer keeps for the backward pass."""

    element: int = 2
    """Bytes of what products read and write."""
    residual: int = 2
    """Bytes an element of the stream between the layers: 4 where autocast leaves it in fp32."""
    score: int = 2
    """Bytes of a score, where attention writes them."""
    mask: int = 1
    """Bytes an element of a dropout's mask: PyTorch's are as wide as a float on a CPU."""
    fused: bool = True
    """Attention never writes its scores, only their normaliser in fp32, one a head."""
    recompute: str = "none"
    """selective: what is cheap is computed again, scores where they are written; where attention is
    fused a layer keeps its input, the outputs of its products, those that end a branch whole under
    tp, and of attention. full: a layer keeps its input alone."""
    tp: int = 1
    sequence_parallel: bool = True


def layer_bytes(config: ModelConfig, micro_batch: int, kept: ActivationPolicy) -> float:
    """Bytes that one layer of a rank keeps for one micro-batch. Raises ValueError for a
    recomputation that is not in RECOMPUTE.
    """
    if kept.recompute not in RECOMPUTE:
        raise ValueError(f"unknown recomputation {kept.recompute!r}")
    e, r, drops = kept.element, kept.residual, config.dropout > 0
    again = kept.recompute == "selective"
    whole, divided = 2.0 * r + 2 * e + 2 * kept.mask * drops, 12.0 * e
    undivided = 0.0
    if kept.fused:
        divided += 4 * config.n_head / config.d_model
        if again:
            whole, divided, undivided = r, divided - 4 * e, 2.0 * e
    elif not again:
        divided += (
            (2 * kept.score + kept.mask if drops else kept.score)
            * config.n_head
            * config.n_ctx
            / config.d_model
        )
    if kept.recompute == "full":
        whole, divided, undivided = r, 0.0, 0.0
    each = undivided + whole / (kept.tp if kept.sequence_parallel else 1) + divided / kept.tp
    return each * micro_batch * config.n_ctx * config.d_model


def layers_in_flight(
    layers: int,
    pp: int,
    stage: int,
    micro_batches: int,
    *,
    interleave: int = 1,
    schedule: str = "1f1b",
) -> float:
    """How many layers' activations a stage of `layers` holds at once, times micro-batches.

    Under one-forward-one-backward stage i has begun pp - i micro-batches before the first comes
    back; `interleave` chunks of layers a rank add (pp-1)/(pp·interleave). The others have begun all
    of them.
    """
    if schedule in ("gpipe", "loopedbfs"):
        return layers * micro_batches
    interleave = max(interleave, SCHEDULES[schedule])
    more = 1 + (pp - 1) / (pp * interleave) if interleave > 1 else 1.0
    return layers * min(pp - stage, micro_batches) * more
