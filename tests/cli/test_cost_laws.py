"""Laws on the terminal, and runs read from their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.cli.cost_laws import (
    fit_report,
    optimal_report,
    predict,
    print_affordable,
    print_fit,
    print_optimal,
    read_run,
)
from gptcli.cost.cluster import Affordable
from gptcli.cost.lawfit import Run, fit_law
from gptcli.cost.scaling import LAWS, critical_batch, gpt3_loss, kaplan_batch
from gptcli.errors import InputError
from gptcli.model.config import ModelConfig
from gptcli.model.hf_config import to_transformers

CONFIG = ModelConfig(n_layer=3, n_head=2, d_model=16, n_ctx=32, vocab_size=100)


def make_run(folder: Path, *lines: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_transformers(CONFIG, 99)))
    (folder / "metrics.jsonl").write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return folder


def test_the_last_validation_counts(tmp_path: Path) -> None:
    steps = [
        {"tokens": 10, "loss": 5.0, "val_loss": 4.5},
        {"tokens": 20, "loss": 4.0, "val_loss": 3.5},
        {"tokens": 30, "loss": 3.0},
    ]
    run = read_run(make_run(tmp_path / "a", *steps))
    assert (run.parameters, run.tokens, run.loss) == (CONFIG.parameters, 20, 3.5)
    assert run.name == str(tmp_path / "a")


def test_the_running_mean_of_the_loss_where_none_was_validated(tmp_path: Path) -> None:
    run = read_run(
        make_run(tmp_path / "a", {"tokens": 10, "loss": 5.0}, {"tokens": 20, "loss": 4.0})
        / "metrics.jsonl"
    )
    assert (run.tokens, run.loss) == (20, 4.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no step with a loss above zero"),
        ([{"tokens": 10, "loss": 5.0}, {"tokens": 20}], "metrics.jsonl:2: not a line of metrics"),
        (["{"], "metrics.jsonl:1: not a line of metrics"),
        (["[]"], "metrics.jsonl:1: not a line of metrics"),
        ([{"tokens": "x", "loss": 5.0}], "metrics.jsonl:1"),
        ([{"tokens": 10, "loss": 0.0}], "no step with a loss above zero"),
        ([{"tokens": 0, "loss": 5.0}], "no step with a loss above zero"),
        (['{"tokens": 10, "loss": NaN}'], "no step with a loss above zero"),
        (['{"tokens": 10, "loss": Infinity}'], "no step with a loss above zero"),
    ],
)
def test_what_is_no_record_of_a_run(tmp_path: Path, lines: list[object], message: str) -> None:
    folder = make_run(tmp_path / "a", *lines)
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert message in str(caught.value)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        read_run(tmp_path)
    folder = make_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_run(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no such run"):
        read_run(folder)


def runs() -> list[Run]:
    return [
        Run(
            name=f"run-{n}",
            parameters=10**5 * 2**n,
            tokens=10**6 * 2**n,
            loss=5.0 * 4 ** (-0.05 * n),
        )
        for n in range(5)
    ]


def test_a_prediction_and_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = fit_law(runs())
    made, planned = (
        predict(fitted, "made", 3_200_000, 32_000_000, 3.6),
        predict(fitted, "planned", 3_200_000, 32_000_000, None),
    )
    assert made.loss == pytest.approx(5.0 * 4**-0.25)
    assert made.error == pytest.approx(made.loss / 3.6 - 1)
    assert planned.error is None
    report = fit_report(fitted, runs(), [made, planned])
    assert [one["error"] for one in report["predicted"]] == [made.error, None]
    assert len(report["runs"]) == 5
    assert json.loads(json.dumps(report))["law"] == "compute"
    print_fit(fitted, runs(), [made, planned], markdown=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "made, not among them: 3.2M parameters on 32M tokens: predicted 3.5355" in text
    assert "measured 3.6000, so the law is -1.79% off" in text
    assert text.count("measured") == 1
    assert "run-4" in text


def test_optimal_says_all_laws(capsys: pytest.CaptureFixture[str]) -> None:
    report = optimal_report(5.76e23)
    assert [row["law"] for row in report["optimal"]] == [law.name for law in LAWS]
    assert all(row["source"] and row["date"] for row in report["optimal"])
    kaplan, *others = report["optimal"]
    assert (
        kaplan["parameters"],
        kaplan["tokens"],
        kaplan["loss"],
        kaplan["tokens_per_parameter"],
    ) == (None,) * 4
    assert (report["gpt3_loss"], report["best_batch_tokens"], report["critical_batch_tokens"]) == (
        None,
    ) * 3
    for row in others:
        assert row["tokens_per_parameter"] * row["parameters"] == pytest.approx(row["tokens"])
    print_optimal(report, markdown=True)
    text = capsys.readouterr().out
    assert "| chinchilla-refit |" in text
    assert "| kaplan |" not in text
    assert "kaplan: outside the law's range (8.64e12 to 8.64e20 FLOP)" in text
    assert "GPT-3's own fit: outside" in text


def test_where_all_laws_hold_all_speak(capsys: pytest.CaptureFixture[str]) -> None:
    report = optimal_report(1e20)
    assert report["gpt3_loss"] == gpt3_loss(1e20)
    assert report["best_batch_tokens"] == kaplan_batch(1e20)
    assert report["critical_batch_tokens"] == critical_batch(gpt3_loss(1e20))
    print_optimal(report, markdown=False)
    text = capsys.readouterr().out
    assert f"loss {gpt3_loss(1e20):.3f}" in text
    assert "outside" not in text


@pytest.mark.parametrize("flops", [1e3, 1e30])
def test_where_none_holds_none_speaks(capsys: pytest.CaptureFixture[str], flops: float) -> None:
    print_optimal(optimal_report(flops), markdown=False)
    text = capsys.readouterr().out
    assert text.count("outside the law's range") == len(LAWS) + 1
    assert "1.3" not in text.replace("5.76e23", ""), "no loss"


def test_what_a_budget_buys(capsys: pytest.CaptureFixture[str]) -> None:
    print_affordable(
        [Affordable("125M", 3e9, 3.123), Affordable("13B", 1e9, 3.5)], 250, "8 a100", markdown=False
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "250 GPU-hours on 8 a100, best first"
    assert lines[2].split() == ["125M", "3B", "3.123"]
    assert "outside" not in " ".join(lines)
    print_affordable([Affordable("125M", 3e6, None)], 1e-4, "8 a100", markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.36 GPU-seconds on 8 a100, best first"
    assert lines[2].split() == ["125M", "3M", "outside"]
    assert lines[-1] == "outside: of the law's range (N 70M to 70B, D 5B to 1.4T)"
