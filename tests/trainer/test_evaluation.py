from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.source import SAMPLES
from gptcli.runs.metrics import read_lines
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.load import load
from gptcli.shards.order import TokenStream
from gptcli.trainer import evaluation
from gptcli.trainer.evaluation import (
    PROMPT_TOKENS,
    SAMPLE_TOKENS,
    SAMPLING,
    SequentialWindows,
    open_validation,
    sample_prompts,
)
from gptcli.trainer.parallelize import build_train_step


@pytest.mark.parametrize("micro_batch", [1, 3, 24])
def test_validation_loss_is_the_mean_over_the_first_windows(make_run, micro_batch):
    run = make_run(dropout=0.5)
    train_step = build_train_step(run, RankContext(torch.device("cpu")), SILENT)
    order = open_validation(run)
    assert order is not None
    loss = train_step.validation_loss(order, 10, micro_batch)
    x, y = (torch.from_numpy(part) for part in order.batch(0, 10))
    with torch.no_grad():
        expected = F.cross_entropy(train_step.model.eval()(x).flatten(0, 1), y.flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert all(parameter.grad is None for parameter in train_step.model.parameters())


def test_samples_are_what_the_model_of_the_checkpoint_decodes(make_run, train_here, monkeypatch):
    def prompts(run):
        """A document's beginning, and a place where a document ends and another begins."""
        return [[run.eot_id, 65, 66], [67, run.eot_id, 68]]

    monkeypatch.setattr(evaluation, "sample_prompts", prompts)
    threads = torch.get_num_threads()
    run = make_run(samples=2, checkpoint_every=20, n_ctx=32, seed=3)
    train_here(run)
    rows = read_lines(run.out / SAMPLES)
    assert [row["step"] for row in rows] == [20, 20]  # the only checkpoint is the last
    loaded = load(run.out, device="cpu", precision="fp32")
    for index, (row, prompt) in enumerate(zip(rows, prompts(run), strict=True)):
        alone = TokenSequence(
            prompt,
            max_tokens=SAMPLE_TOKENS,
            generator=sample_generator(3, index),
            stop_id=run.eot_id,
        )
        assert list(generate_sequences(loaded.model, [alone], SAMPLING, batch_size=1)) == [alone]
        assert row["text"] == loaded.tokenizer.decode(alone.tokens)
    decode = loaded.tokenizer.decode
    assert rows[0]["prompt"] == decode([65, 66])
    assert rows[1]["prompt"] == f"{decode([67])}<|endoftext|>{decode([68])}"
    assert torch.get_num_threads() == threads
    assert "Samples" in (run.out / "report.html").read_text()


def test_prompts_are_end_of_text_and_evenly_spaced_validation_text(
    make_run, write_shards, tmp_path
):
    run = make_run(samples=3)
    first, *others = sample_prompts(run)
    assert first == [run.eot_id]
    assert [len(other) for other in others] == [PROMPT_TOKENS] * 2
    assert others[0] != others[1]
    assert sample_prompts(run) == sample_prompts(run)
    bare = make_run(samples=3, data=write_shards(tmp_path / "bare", val=0))
    assert sample_prompts(bare) == [[run.eot_id]]


def test_validation_windows_are_sequential():
    order = SequentialWindows(TokenStream([np.arange(7), np.arange(7, 14)]), 4)
    assert order.windows == 3
    x, y = order.batch(1, 2)
    assert x.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert y.tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]
