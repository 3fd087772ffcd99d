from __future__ import annotations

import torch

from gptcli.runs.metrics import read_lines
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.load import load
from gptcli.trainer.samples import LENGTH, PROMPT, RULES, SAMPLES, prompts


def test_every_checkpoint_writes_what_its_model_would(make_run, train_here):
    threads = torch.get_num_threads()
    run = make_run(samples=2, checkpoint_every=20, n_ctx=32, seed=3)
    train_here(run)
    rows = read_lines(run.out / SAMPLES)
    assert [row["step"] for row in rows] == [20, 20]  # the only checkpoint is the last
    loaded = load(run.out, device="cpu", precision="fp32")
    for number, (row, prompt) in enumerate(zip(rows, prompts(run), strict=True)):
        alone = TokenSequence(
            prompt, max_tokens=LENGTH, generator=sample_generator(3, number), stop_id=run.eot_id
        )
        assert list(generate_sequences(loaded.model, [alone], RULES, batch_size=1)) == [alone]
        assert row["text"] == loaded.tokenizer.decode(alone.tokens)
    assert row["prompt"] == loaded.tokenizer.decode(prompt)
    assert torch.get_num_threads() == threads
    assert "Samples" in (run.out / "report.html").read_text()


def test_prompts_are_end_of_text_and_places_of_the_validation_text(
    make_run, write_shards, tmp_path
):
    run = make_run(samples=3)
    first, *others = prompts(run)
    assert first == [run.eot_id]
    assert [len(other) for other in others] == [PROMPT] * 2
    assert others[0] != others[1]
    assert prompts(run) == prompts(run)
    assert prompts(make_run(samples=3, data=write_shards(tmp_path / "bare", val=0))) == [
        [run.eot_id]
    ]
