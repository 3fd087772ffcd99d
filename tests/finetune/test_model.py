"""Loss, learning-rate schedule and special tokens of fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch

from gptcli.finetune.model import GPTClassifier, add_special_tokens, lr_multiplier
from gptcli.finetune.task import Example, Kind, collate
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=12, vocab_size=20, norm="post")
S, D, E = 20, 21, 22


def tuned(kind: Kind, labels: int = 2) -> GPTClassifier:
    gpt = GPT(CONFIG)
    gpt.init_weights(0)
    torch.manual_seed(0)
    model = GPTClassifier(add_special_tokens(gpt, 0), kind, labels).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


def alone(model: GPTClassifier, ids: list[int]) -> tuple[torch.Tensor, float]:
    """The end state and the mean loss of one sequence that nothing is padded to."""
    idx = torch.tensor([ids])
    log_probs = model.gpt(idx).log_softmax(-1)[0]
    nats = [-log_probs[t, ids[t + 1]].item() for t in range(len(ids) - 1)]
    return model.gpt.hidden(idx)[0, -1], sum(nats) / len(nats)


EXAMPLES = {
    "classification": [
        Example([[S, 3, 4, 5, E]], 1),
        Example([[S, 7, E]], 0),
        Example([[S, 1, 2, 3, 4, 5, 6, E]], 1),
    ],
    "entailment": [Example([[S, 3, 4, D, 5, E]], 1), Example([[S, 7, D, 8, E]], 0)],
    "similarity": [
        Example([[S, 3, D, 4, 5, E], [S, 4, 5, D, 3, E]], 1),
        Example([[S, 7, D, 8, E], [S, 8, D, 7, E]], 0),
    ],
    "multiple-choice": [
        Example([[S, 3, D, 4, E], [S, 3, D, 5, 6, 7, E]], 1),
        Example([[S, 7, D, 8, E], [S, 7, D, 9, E]], 0),
    ],
}


@pytest.mark.parametrize("kind", EXAMPLES)
@torch.no_grad()
def test_losses_equal_those_computed_position_by_position(kind: Kind) -> None:
    model = tuned(kind)
    batch = collate(EXAMPLES[kind])
    losses, (score_NL, _) = model(batch), model.scores(batch)
    w, b = model.classifier.weight, model.classifier.bias
    task: list[float] = []
    lm: list[float] = []
    for example, scores in zip(EXAMPLES[kind], score_NL, strict=True):
        states, nats = zip(*(alone(model, sequence) for sequence in example.sequences), strict=True)
        lm += nats
        by_hand = (
            torch.stack([w[0] @ state + b[0] for state in states])
            if kind == "multiple-choice"
            else w @ sum(states) + b
        )
        torch.testing.assert_close(scores, by_hand, atol=1e-5, rtol=1e-5)
        task.append(-by_hand.log_softmax(-1)[example.label].item())
    assert losses.task.item() == pytest.approx(sum(task) / len(task), rel=1e-5)
    assert losses.lm.item() == pytest.approx(sum(lm) / len(lm), rel=1e-5)
    assert losses.total(0.5).item() == pytest.approx(
        sum(task) / len(task) + 0.5 * sum(lm) / len(lm), rel=1e-5
    )


def test_the_learning_rate_schedule_is_that_of_the_released_code() -> None:
    assert [lr_multiplier(step, 1000) for step in (1, 2, 3, 500, 1000)] == pytest.approx(
        [0.5 * 0.999, 0.998, 0.997, 0.5, 0.0]
    )


def test_special_tokens_come_after_the_vocabulary() -> None:
    gpt = GPT(CONFIG)
    gpt.init_weights(0)
    model = add_special_tokens(gpt, 0)
    assert model.config.vocab_size == 23
    assert torch.equal(model.wte.weight[:20], gpt.wte.weight)
    assert model.lm_head.weight is model.wte.weight
    assert 0.005 < model.wte.weight[20:].std().item() < 0.04
    idx = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(idx)[..., :20], gpt.eval()(idx))
    assert math.isclose(model.config.parameters, gpt.config.parameters + 3 * 16)
