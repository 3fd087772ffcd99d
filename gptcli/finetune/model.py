"""A language model with GPT-1's classifier on top, and the loss they are fine-tuned by (Radford et
al. 2018, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from gptcli.finetune.inputs import SPECIAL, Batch
from gptcli.model.transformer import GPT

INIT_STD = 0.02
LM_WEIGHT = 0.5
WARMUP = 0.002  # of all steps


@dataclass(frozen=True, slots=True)
class Losses:
    task: torch.Tensor
    """Mean cross-entropy of the labels, in nats."""
    lm: torch.Tensor
    """Mean over sequences of the mean over their own positions."""

    def total(self, lm_weight: float = LM_WEIGHT) -> torch.Tensor:
        return self.task + lm_weight * self.lm


class Finetuned(nn.Module):
    """A GPT whose vocabulary ends with the special tokens, and a linear layer that reads the state
    at the last of them.
    """

    def __init__(self, gpt: GPT, kind: str, labels: int) -> None:
        """`labels` is not asked for multiple choice: each answer gets one score."""
        super().__init__()
        self.gpt, self.kind = gpt, kind
        self.drop = nn.Dropout(gpt.config.dropout)
        self.classifier = nn.Linear(gpt.config.d_model, 1 if kind == "multiple-choice" else labels)
        nn.init.normal_(self.classifier.weight, 0.0, INIT_STD)
        nn.init.zeros_(self.classifier.bias)

    def scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the labels (N, L), and the hidden states (N·S, T, C)."""
        N, S, T = batch.ids.shape
        x_NTC = self.gpt.hidden(batch.ids.view(N * S, T))
        end_N = batch.lengths.view(-1) - 1
        state_NSC = self.drop(x_NTC[torch.arange(N * S, device=end_N.device), end_N]).view(N, S, -1)
        if self.kind == "multiple-choice":
            return self.classifier(state_NSC).squeeze(-1), x_NTC
        return self.classifier(state_NSC.sum(1)), x_NTC  # a sum of one, or of both orders

    def forward(self, batch: Batch) -> Losses:
        score_NL, x_NTC = self.scores(batch)
        N, S, T = batch.ids.shape
        ids_NT, length_N = batch.ids.view(N * S, T), batch.lengths.view(-1)
        logits_NTV = self.gpt.lm_head(x_NTC[:, :-1])
        nats_NT = F.cross_entropy(
            logits_NTV.flatten(0, 1).float(), ids_NT[:, 1:].flatten(), reduction="none"
        ).view(N * S, T - 1)
        real_NT = torch.arange(T - 1, device=length_N.device) < (length_N - 1)[:, None]
        lm = ((nats_NT * real_NT).sum(1) / (length_N - 1)).mean()
        return Losses(F.cross_entropy(score_NL.float(), batch.labels), lm)


@torch.no_grad()
def with_special_tokens(gpt: GPT, seed: int, *, dropout: float = 0.0) -> GPT:
    """The same model with rows for the special tokens after its vocabulary, N(0, 0.02), and dropout
    for training.
    """
    config = replace(gpt.config, vocab_size=gpt.config.vocab_size + len(SPECIAL), dropout=dropout)
    model = GPT(config)
    state = gpt.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in ("wte.weight", "lm_head.weight"):
        new = torch.empty(len(SPECIAL), config.d_model).normal_(0.0, INIT_STD, generator=generator)
        state[name] = torch.cat([state[name], new.to(state[name])])
    if config.tied:
        state["lm_head.weight"] = state["wte.weight"]
    model.load_state_dict(state)
    return model


def schedule(step: int, steps: int) -> float:
    """What the learning rate is multiplied with in step `step` (from 1) of `steps`, by the released
    code: warm-up, and linear to 0.
    """
    x = step / steps
    return (x / WARMUP if x <= WARMUP else 1.0) * (1 - x)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Adam with the released constants; decay on tensors of two or more dimensions."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
