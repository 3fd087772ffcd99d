"""Log-likelihoods and predictions equal lm-evaluation-harness's, if it is installed.

Choices, greedy last words and rolling text are compared. For requests longer than the context the
two differ by design: it truncates the context of each choice separately, while here the same
beginning is cut for all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptcli.evals.runner import run_task
from gptcli.evals.task import read_task
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "items*"}\nreader = "jsonl"\n'
WORDS = ["self", "text", "width", "naïve", "line,", "indent", "return", "if not"]


def test_scores_equal_lm_evaluation_harness(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    save_model(tmp_path / "run", model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    theirs = HFLM(pretrained=str(tmp_path / "run"), device="cpu", dtype="float32", batch_size=4)
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "q": " ".join(random.choice(WORDS, 3)),
            "c": [str(word) for word in random.choice(WORDS, 3)],
            "g": 0,
        }
        for _ in range(30)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    (tmp_path / "choice.toml").write_text(
        HEAD + 'kind = "choice"\nprompt = "{q}"\nchoices = "c"\ngold = "g"\nnormalise = "sum"\n'
    )
    [result], records = run_task(model, tokenizer, read_task(tmp_path / "choice.toml"), tmp_path)
    pairs = [(row["q"], f" {choice}") for row in rows for choice in row["c"]]
    found = np.array(
        theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    )[:, 0].reshape(30, 3)
    np.testing.assert_allclose([record["log_probs"] for record in records], found, atol=1e-4)
    assert result.correct == (found.argmax(axis=1) == 0).sum()

    (tmp_path / "word.toml").write_text(HEAD + 'kind = "last_word"\nprompt = "{q}"\n')
    [result, *_], records = run_task(model, tokenizer, read_task(tmp_path / "word.toml"), tmp_path)
    split = [row["q"].rpartition(" ") for row in rows]
    made = theirs.loglikelihood(
        [Instance("loglikelihood", {}, (before, f" {word}"), 0) for before, _, word in split]
    )
    np.testing.assert_allclose(
        [sum(record["log_probs"]) for record in records],
        [log_prob for log_prob, _ in made],
        atol=1e-4,
    )
    assert result.correct == sum(greedy for _, greedy in made)

    text = tokenizer.decode(tokenizer.encode("def wrap(text): return self.text " * 30)[: 24 * 6])
    (tmp_path / "items.jsonl").write_text(json.dumps({"t": text}) + "\n")
    (tmp_path / "text.toml").write_text(
        HEAD + 'kind = "text"\ntarget = "{t}"\nmetric = ["perplexity"]\n'
    )
    _, records = run_task(model, tokenizer, read_task(tmp_path / "text.toml"), tmp_path)
    [total] = theirs.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    # whole windows only, because it gives more context to a shorter last one
    assert len(tokenizer.encode(text)) == 24 * 6
    assert sum(record["log_prob"] for record in records) == pytest.approx(total, abs=1e-3)
