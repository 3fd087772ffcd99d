"""The log-probabilities of given tokens: sequences of any length in one batch, logits only where a token is scored.

Padding stands on the right, where a causal model never looks from a real position, so a score does not depend on what shares its batch.
Shapes: B sequences, T positions, N scored tokens in all, C d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gptcli.model.loss import CHUNK_BYTES
from gptcli.model.transformer import GPT

BATCH_TOKENS = 8192  # of a batch, where no --batch-size is given

Score = tuple[np.ndarray, np.ndarray]  # log-probabilities in nats (fp32), and whether each token was the likeliest (bool)


def batches(lengths: Sequence[int], batch_size: int | None) -> Iterator[range]:
    """Consecutive runs of sequences: `batch_size` each, or as many as hold BATCH_TOKENS when padded; at least one."""
    start = 0
    while start < len(lengths):
        size = batch_size or max(1, BATCH_TOKENS // lengths[start])  # lengths fall, or are all the same
        yield range(start, min(start + size, len(lengths)))
        start += size


@torch.inference_mode()
def score(model: GPT, sequences: Sequence[Sequence[int] | np.ndarray], counts: Sequence[int]) -> list[Score]:
    """Score the last `counts[i]` tokens of each sequence, given those before them (at least one, at most n_ctx)."""
    device = model.wte.weight.device
    longest = max(len(sequence) for sequence in sequences) - 1
    idx_BT = torch.zeros(len(sequences), longest, dtype=torch.int64)
    target_BT = torch.zeros_like(idx_BT)
    scored_BT = torch.zeros_like(idx_BT, dtype=torch.bool)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        tokens, last = torch.as_tensor(np.asarray(sequence, dtype=np.int64)), len(sequence) - 1
        idx_BT[row, :last] = tokens[:-1]
        target_BT[row, :last] = tokens[1:]
        scored_BT[row, last - count : last] = True
    x_NC = model.hidden(idx_BT.to(device))[scored_BT.to(device)]
    log_probs, likeliest = _head(model, x_NC, target_BT[scored_BT].to(device))
    ends = np.cumsum(counts)[:-1]
    return list(zip(np.split(log_probs, ends), np.split(likeliest, ends), strict=True))


def _head(model: GPT, x_NC: torch.Tensor, target_N: torch.Tensor) -> Score:
    step = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
    log_probs, likeliest = [], []
    for x_nC, target_n in zip(x_NC.split(step), target_N.split(step), strict=True):
        logits_nV = model.lm_head(x_nC).float()
        target_n1 = target_n[:, None]
        log_probs.append((logits_nV.gather(1, target_n1) - logits_nV.logsumexp(dim=-1, keepdim=True))[:, 0])
        likeliest.append(logits_nV.argmax(dim=-1) == target_n)
    return torch.cat(log_probs).cpu().numpy(), torch.cat(likeliest).cpu().numpy()
