"""Reports that `gpt cost` prints."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gptcli.cli.cost_report import (
    OutputOptions,
    formulas,
    print_affordable,
    print_estimate,
    print_fit,
    print_optimal,
    print_sizes,
)
from gptcli.cost.cluster import Affordable
from gptcli.cost.estimate import Estimate
from gptcli.cost.options import HardwareOptions
from gptcli.cost.scaling import LAWS, critical_batch, gpt3_loss, kaplan_batch, optimal_report
from gptcli.cost.scaling_fit import fit_law, fit_report
from gptcli.cost.scaling_forms import RunResult
from gptcli.cost.target import estimate_target, find_target

PLAIN = OutputOptions(json=False, markdown=False, explain=False, plot=None)
EXPLAINED = OutputOptions(json=False, markdown=False, explain=True, plot=None)


def report(
    capsys: pytest.CaptureFixture[str],
    found: Estimate,
    *,
    brief: bool = False,
    explain: bool = False,
) -> str:
    print_estimate(found, EXPLAINED if explain else PLAIN, brief=brief)
    return capsys.readouterr().out


def priced(size: str, **options: Any) -> Estimate:
    return estimate_target(find_target(size), None, HardwareOptions(**options))


def figure(text: str, name: str) -> str:
    found = re.search(rf"^\s*{re.escape(name)}\s\s+(\S+)", text, re.MULTILINE)
    assert found, f"no {name!r} in\n{text}"
    return found[1]


def test_estimate_of_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("13B", gpu="h100", gpus=64))
    assert figure(text, "tokens per parameter") == "23.34"
    assert figure(text, "FLOP, 6ND") == "2.31e22"
    assert figure(text, "FLOP, Megatron") == "2.46e22"
    assert figure(text, "bytes per new token") == "27.4"
    assert "at most 122 tokens/s on 1 h100" in text
    assert "inference in 16 bits" in text
    assert "fits 64 h100 of 80 GB" in text
    assert "goodput" in text
    assert max(map(len, text.splitlines())) <= 80


def test_estimate_of_another_family(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("T5-11B", gpu="a100"))
    assert figure(text, "Parameters") == "11,000,000,000"
    assert figure(text, "FLOP, 3ND") == "3.30e22"
    assert "KV cache" not in text
    assert "loss" not in text
    assert figure(text, "total for training") == "176"


def test_brief_estimate_has_no_memory_loss_or_inference(capsys: pytest.CaptureFixture[str]) -> None:
    v100 = HardwareOptions(gpu="v100")
    published = estimate_target(find_target("175B"), None, v100, published=True)
    text = report(capsys, published, brief=True)
    assert figure(text, "GPU-years") == "355.9"
    assert not re.search("Memory|loss|Inference", text)


def test_estimate_on_a_custom_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("1.3B", tflops=20, memory=24))
    assert "a custom GPU" in text
    assert "no GPU named, so no MFU" in text
    assert "fits 1 GPU of 24 GB" in text
    assert "tokens/s" not in text, "its bandwidth is unknown"
    assert "fits" not in report(capsys, priced("1.3B", tflops=20))


def test_predicted_speeds_have_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("1.3B", gpu="a100"))
    low, high = re.search(r"GPU-hours\s+\S+\s+(\S+) to (\S+)", text).groups()  # type: ignore[union-attr]
    assert 1.5**2 < float(high.replace(",", "")) / float(low.replace(",", "")) < 1.8**2
    assert not re.search(
        r"GPU-hours\s+\S+\s+\S+ to", report(capsys, priced("1.3B", gpu="a100", mfu=0.4))
    )


def test_explained_estimate_prints_sources(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("T5-11B", gpu="a100"), explain=True)
    assert "FLOP = 3·N·D" in text
    assert "https://www.nvidia.com/content/dam/" in text
    assert "price = 1.79 $ per GPU-hour" in text


def test_table_of_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    print_sizes(
        [priced(size, gpu="a100", gpus=8) for size in ("gpt2", "T5-3B")],
        PLAIN,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 a100; FLOP by 6ND, of T5 by 3ND; memory to train, without activations"
    assert lines[1].split()[-2:] == ["memory", "time"]
    assert lines[3].split()[:5] == ["T5-3B", "3B", "1T", "9.00e21", "104"]
    print_sizes([priced("gpt2", gpu="a100")], PLAIN, unfit={"gpt2": 4})
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[:2]).endswith("; needs: GPUs that hold the size")
    assert lines[3].endswith(" needs 4")


def runs() -> list[RunResult]:
    return [
        RunResult(
            name=f"run-{n}",
            parameters=10**5 * 2**n,
            tokens=10**6 * 2**n,
            loss=5.0 * 4 ** (-0.05 * n),
        )
        for n in range(5)
    ]


def test_fit_prints_predictions_and_their_errors(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = fit_law(runs())
    made, planned = (
        fitted.predict("made", 3_200_000, 32_000_000, 3.6),
        fitted.predict("planned", 3_200_000, 32_000_000, None),
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
    assert "made, not used in the fit: 3.2M parameters on 32M tokens: predicted 3.5355" in text
    assert "measured 3.6000, error of the law -1.79%" in text
    assert text.count("measured") == 1
    assert "run-4" in text


def test_optimal_reports_all_laws(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "GPT-3's fit: outside" in text


def test_optimal_reports_the_gpt3_fit_within_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    report = optimal_report(1e20)
    assert report["gpt3_loss"] == gpt3_loss(1e20)
    assert report["best_batch_tokens"] == kaplan_batch(1e20)
    assert report["critical_batch_tokens"] == critical_batch(gpt3_loss(1e20))
    print_optimal(report, markdown=False)
    text = capsys.readouterr().out
    assert f"loss {gpt3_loss(1e20):.3f}" in text
    assert "outside" not in text


@pytest.mark.parametrize("flops", [1e3, 1e30])
def test_optimal_reports_no_loss_outside_all_ranges(
    capsys: pytest.CaptureFixture[str], flops: float
) -> None:
    print_optimal(optimal_report(flops), markdown=False)
    text = capsys.readouterr().out
    assert text.count("outside the law's range") == len(LAWS) + 1
    assert "1.3" not in text.replace("5.76e23", ""), "no loss"


def test_affordable_sizes_are_listed_with_losses(capsys: pytest.CaptureFixture[str]) -> None:
    print_affordable(
        [Affordable("125M", 3e9, 3.123), Affordable("13B", 1e9, 3.5)], 250, "8 a100", markdown=False
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "250 GPU-hours on 8 a100, lowest loss first"
    assert lines[2].split() == ["125M", "3B", "3.123"]
    assert "outside" not in " ".join(lines)
    print_affordable([Affordable("125M", 3e6, None)], 1e-4, "8 a100", markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.36 GPU-seconds on 8 a100, lowest loss first"
    assert lines[2].split() == ["125M", "3M", "outside"]
    assert lines[-1] == "outside: not in the law's range (N 70M to 70B, D 5B to 1.4T)"


def test_formulas_compute_the_value_they_print() -> None:
    """Each line's last figure follows from the figures before it."""
    lines = formulas(
        estimate_target(find_target("13B"), None, HardwareOptions(gpu="a100", gpus=64))
    )
    text = "\n".join(lines)
    assert "FLOP = 6·N·D = 6 x 12,853,386,240 x 300,000,000,000 = 2.31e22" in text
    assert "PF-days = FLOP / 8.64e19 = 267.8" in text
    assert "training state = (4 + 4 + 8 bytes)·N = 206 GB" in text
    assert "KV cache a token = 2·L·C x 2 bytes = 819,200 bytes" in text
    flops, speed, goodput, hours = map(
        float,
        re.search(
            r"3,600 = (\S+) / \((\S+) x goodput (\S+)\) / 3,600 = (\S+)",
            text.replace(",", "").replace("3600", "3,600"),
        ).groups(),  # type: ignore[union-attr]
    )
    assert hours == pytest.approx(flops / speed / goodput / 3600, rel=0.01)
    match = re.search(r"= (\d+) x (\S+) / (\S+) = (\S+) tokens/s", text)
    assert match is not None
    gpus, bandwidth, n_bytes, rate = map(float, match.groups())
    assert rate == pytest.approx(gpus * bandwidth / n_bytes, rel=0.01)
