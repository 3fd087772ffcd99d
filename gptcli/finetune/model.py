"""GPT-1's classifier on top of a language model, its loss and its optimizer (Radford et al. 2018,
section 3.2 and the released code).

A finished folder is that of a language model, whose vocabulary is three tokens longer, with two
more files: the classifier, and `finetune.json`, the task with the accuracy it reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, UsageError
from gptcli.files import atomic_write, read_json, write_json
from gptcli.finetune.task import (
    SPECIAL_TOKENS,
    Batch,
    Example,
    FinetuneTask,
    Kind,
    collate,
)
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.source import (
    CLASSIFIER,
    FINETUNE_REPORT,
)
from gptcli.model.tensor_file import open_tensors, unreadable_error
from gptcli.model.transformer import GPT
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer

INIT_STD = 0.02
WARMUP_FRACTION = 0.002  # of all steps
SINGLE_PROCESS = RankContext(torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a batch, in nats."""

    task: torch.Tensor
    """Mean cross-entropy of the labels, a scalar."""
    lm: torch.Tensor
    """Mean over sequences of each one's mean language-model loss, a scalar."""

    def total(self, lm_weight: float) -> torch.Tensor:
        """Return the weighted sum (equation 5)."""
        return self.task + lm_weight * self.lm


class GPTClassifier(nn.Module):
    """GPT with a linear layer that reads the hidden state at the end of each sequence.

    The vocabulary of the GPT ends with the special tokens.
    """

    def __init__(self, gpt: GPT, kind: Kind, n_labels: int) -> None:
        """Initialize the classifier; multiple choice ignores `n_labels`, as each answer has one
        score.
        """
        super().__init__()
        self.gpt, self.kind = gpt, kind
        self.drop = nn.Dropout(gpt.config.dropout)
        n_scores = 1 if kind == "multiple-choice" else n_labels
        self.classifier = nn.Linear(gpt.config.d_model, n_scores)
        nn.init.normal_(self.classifier.weight, 0.0, INIT_STD)
        nn.init.zeros_(self.classifier.bias)

    def scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the labels (N, L), and the hidden states (N·S, T, C)."""
        N, S, T = batch.ids.shape
        x_NTC = self.gpt.hidden(batch.ids.view(N * S, T))
        end_N = batch.lengths.view(-1) - 1
        state_NSC = self.drop(x_NTC[torch.arange(N * S, device=end_N.device), end_N]).view(N, S, -1)
        if self.kind == "multiple-choice":
            return self.classifier(state_NSC).squeeze(-1), x_NTC
        # the sum over one sequence, or over both orders of a similarity
        return self.classifier(state_NSC.sum(1)), x_NTC

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch; padding does not count."""
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
def add_special_tokens(gpt: GPT, seed: int, *, dropout: float = 0.0) -> GPT:
    """Return the model with embeddings for the special tokens after its vocabulary.

    The new rows are drawn from N(0, 0.02²); `dropout` is that of fine-tuning.
    """
    vocab_size = gpt.config.vocab_size + len(SPECIAL_TOKENS)
    config = replace(gpt.config, vocab_size=vocab_size, dropout=dropout)
    model = GPT(config)
    state = gpt.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in ("wte.weight", "lm_head.weight"):
        new = torch.empty(len(SPECIAL_TOKENS), config.d_model)
        new.normal_(0.0, INIT_STD, generator=generator)
        state[name] = torch.cat([state[name], new.to(state[name])])
    if config.tied:
        state["lm_head.weight"] = state["wte.weight"]
    model.load_state_dict(state)
    return model


def lr_multiplier(step: int, steps: int) -> float:
    """Return the learning rate's multiplier in step `step` (from 1) of `steps`.

    Linear warm-up, and linear decay to 0, multiplied, as in the released code.
    """
    x = step / steps
    return (x / WARMUP_FRACTION if x <= WARMUP_FRACTION else 1.0) * (1 - x)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with the released constants; only matrices and embeddings are decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=on_gpu or None)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Number of examples whose label was predicted correctly."""

    correct: int
    examples: int

    @property
    def fraction(self) -> float:
        """Fraction of correct examples."""
        return self.correct / self.examples


@torch.no_grad()
def accuracy(
    model: GPTClassifier,
    examples: Sequence[Example],
    batch: int,
    context: RankContext = SINGLE_PROCESS,
) -> Accuracy:
    """Return the accuracy on the examples, `batch` at a time; a collective call."""
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.long, device=context.device)
    for start in range(context.replica_rank * batch, len(examples), context.replicas * batch):
        part = collate(examples[start : start + batch]).to(context.device)
        scores_NL, _ = model.scores(part)
        correct += (scores_NL.argmax(-1) == part.labels).sum()
    model.train(was_training)
    return Accuracy(int(context.all_reduce_sum(correct)), len(examples))


def save_classifier(
    out: Path, model: GPTClassifier, tokenizer: Tokenizer, report: dict[str, Any]
) -> None:
    """Write the finished model; finetune.json, which marks the run as finished, comes last."""
    from safetensors.torch import save

    tokenizer.save_for_model(out, model.gpt.config.n_ctx)
    save_model(out, model.gpt, model.gpt.config, eot_id=tokenizer.eot_id)
    weights = {
        name: weight.detach().cpu() for name, weight in model.classifier.state_dict().items()
    }
    with atomic_write(out / CLASSIFIER) as file:
        file.write(save(weights))
    write_json(out / FINETUNE_REPORT, report)


def load_classifier(folder: Path) -> tuple[GPTClassifier, FinetuneTask, Tokenizer, Path]:
    """Load a fine-tuned model for inference.

    Returns the model, its task, the tokenizer without the special tokens, and the validation file.
    Raises InputError if a file of the folder is missing or broken.
    """
    report = read_json(folder / FINETUNE_REPORT)
    try:
        task, data = FinetuneTask(**report["task"]), Path(report["data"])
    except (KeyError, TypeError, AttributeError, UsageError):
        raise InputError(
            "not written by gpt train --finetune",
            where=folder / FINETUNE_REPORT,
            hint="fine-tune again, or copy it again",
        ) from None
    model = GPTClassifier(load_model(folder), task.kind, len(task.labels))
    try:
        with open_tensors(folder / CLASSIFIER) as file:
            names = list(file.keys())
            model.classifier.load_state_dict({name: file.get_tensor(name) for name in names})
    except FileNotFoundError:
        raise InputError(
            f"no {CLASSIFIER} here, which is part of a fine-tuned model",
            where=folder,
            hint="copy it again",
        ) from None
    except (SafetensorError, ValueError) as error:
        raise unreadable_error(folder / CLASSIFIER, error) from None
    except RuntimeError:
        raise InputError(
            "not the classifier of this task", where=folder / CLASSIFIER, hint="copy it again"
        ) from None
    return model.eval(), task, load_tokenizer(folder), data / task.validation
