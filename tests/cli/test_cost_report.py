"""How an estimate reads: figures in their rows, formulas with their numbers."""

from __future__ import annotations

import re

import pytest

from gptcli.cli.cost_options import Terms
from gptcli.cli.cost_report import formulas, print_estimate, print_sizes
from gptcli.cli.cost_subject import estimate, named
from gptcli.cost.estimate import Estimate


def report(
    capsys: pytest.CaptureFixture[str],
    found: Estimate,
    *,
    brief: bool = False,
    explain: bool = False,
) -> str:
    print_estimate(found, brief=brief, explain=explain, markdown=False, rank=[])
    return capsys.readouterr().out


def priced(size: str, **said: str) -> Estimate:
    return estimate(named(size), None, Terms(said))


def figure(text: str, name: str) -> str:
    found = re.search(rf"^\s*{re.escape(name)}\s\s+(\S+)", text, re.MULTILINE)
    assert found, f"no {name!r} in\n{text}"
    return found[1]


def test_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("13B", gpu="h100", gpus="64"))
    assert figure(text, "tokens per parameter") == "23.34"
    assert figure(text, "FLOP, 6ND") == "2.31e22"
    assert figure(text, "FLOP, Megatron") == "2.46e22"
    assert figure(text, "bytes, next token") == "27.4"
    assert "122 tokens/s at most, on 1 h100" in text
    assert "to run in 16 bits" in text
    assert "fits 64 h100 of 80 GB" in text
    assert "goodput" in text
    assert max(map(len, text.splitlines())) <= 80


def test_another_family(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("T5-11B", gpu="a100"))
    assert figure(text, "Parameters") == "11,000,000,000"
    assert figure(text, "FLOP, 3ND") == "3.30e22"
    assert "KV cache" not in text
    assert "Loss" not in text
    assert figure(text, "all to train") == "176"


def test_brief(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("175B", gpu="v100"), brief=True)
    assert figure(text, "GPU-years") == "355.9"
    assert not re.search("Memory|Loss|To run", text)


def test_a_gpu_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("1.3B", tflops="20", memory="24"))
    assert "a GPU of your own" in text
    assert "no GPU named, so no MFU" in text
    assert "fits 1 GPU of 24 GB" in text
    assert "tokens/s" not in text, "its bandwidth is unknown"
    assert "fits" not in report(capsys, priced("1.3B", tflops="20"))


def test_ranges_stand_where_speeds_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("1.3B", gpu="a100"))
    low, high = re.search(r"GPU-hours\s+\S+\s+(\S+) to (\S+)", text).groups()  # type: ignore[union-attr]
    assert float(high.replace(",", "")) / float(low.replace(",", "")) == pytest.approx(
        1.75**2, rel=0.01
    )
    assert not re.search(
        r"GPU-hours\s+\S+\s+\S+ to", report(capsys, priced("1.3B", gpu="a100", mfu="0.4"))
    )


def test_formulas_give_what_they_say() -> None:
    """Each line's last figure follows from the figures before it."""
    lines = formulas(priced("13B", gpu="a100", gpus="64"))
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
    gpus, bandwidth, n_bytes, rate = map(
        float, re.search(r"= (\d+) x (\S+) / (\S+) = (\S+) tokens/s", text).groups()
    )  # type: ignore[union-attr]
    assert rate == pytest.approx(gpus * bandwidth / n_bytes, rel=0.01)


def test_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, priced("T5-11B", gpu="a100"), explain=True)
    assert "FLOP = 3·N·D" in text
    assert "https://www.nvidia.com/content/dam/" in text
    assert "price = 1.75 $ per GPU-hour" in text


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_sizes(
        [priced(size, gpu="a100", gpus="8") for size in ("gpt2", "T5-3B")],
        explain=False,
        markdown=False,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a100; FLOP by 6ND, of T5 by 3ND"
    assert lines[3].split()[:5] == ["T5-3B", "3B", "1T", "9.00e21", "104"]
    assert "on 8" in lines[1]
