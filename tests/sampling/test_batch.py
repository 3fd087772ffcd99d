"""Batch generation: resumed jobs write the same file, and other jobs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling import batch
from gptcli.sampling.batch import BatchJob, generate_file, read_prompts, unfinished_path
from gptcli.sampling.params import SamplingParams
from gptcli.tokenizer.tokenizer import Tokenizer

JOB = BatchJob(params=SamplingParams(top_k=9), max_tokens=5, num_samples=2, batch_size=3)
PROMPTS = [f"def wrap(text, {'x' * number})" for number in range(20)]


def generate(model: GPT, tokenizer: Tokenizer, out: Path, **fingerprint: Any) -> list[Any]:
    generate_file(model, tokenizer, PROMPTS, JOB, out, fingerprint=fingerprint)
    assert not unfinished_path(out).exists()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_output_lines_are_in_the_order_of_the_prompts(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lines = generate(model, tokenizer, tmp_path / "out.jsonl")
    assert [(line["index"], line["prompt"]) for line in lines] == list(enumerate(PROMPTS))
    assert {len(line["samples"]) for line in lines} == {2}


def test_a_job_cut_at_any_line_resumes_to_the_same_file(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "GROUP_BATCHES", 2)  # groups of six prompts
    out = tmp_path / "out.jsonl"
    expected = generate(model, tokenizer, out)
    header = json.dumps(
        {"job": JOB.as_dict(), "prompts": len(PROMPTS)}, sort_keys=True, ensure_ascii=True
    )
    whole = out.read_text().splitlines(keepends=True)
    for count in (0, 1, 6, 13):
        unfinished_path(out).write_text(f"{header}\n{''.join(whole[:count])}{whole[count][:9]}")
        assert generate(model, tokenizer, out) == expected


def test_an_unfinished_file_of_another_job_is_refused(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    unfinished_path(tmp_path / "out.jsonl").write_text('{"job": {}}\n')
    with pytest.raises(UsageError, match="other prompts, options or weights"):
        generate(model, tokenizer, tmp_path / "out.jsonl")


def test_header_names_of_a_job_are_those_of_existing_files() -> None:
    assert JOB.as_dict() == {
        "rules": {
            "temperature": 1.0,
            "top_k": 9,
            "top_p": None,
            "greedy": False,
            "repetition_penalty": 1.0,
        },
        "max_tokens": 5,
        "num_samples": 2,
        "stops": (),
        "seed": 0,
        "batch": 3,
    }


def test_prompts_are_the_field_prompt_of_each_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "id": 1}\n\n{"prompt": ""}\n')
    assert read_prompts(tmp_path / "in.jsonl") == ["a", ""]
    (tmp_path / "in.jsonl").write_text("Once upon a time\n")
    with pytest.raises(InputError, match="not valid JSON") as caught:
        read_prompts(tmp_path / "in.jsonl")
    assert "each line is a JSON object" in str(caught.value.hint)
