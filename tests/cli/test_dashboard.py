"""The live panel through a pseudo-terminal, the plain line elsewhere, and the curve."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli.dashboard import (
    CURVE_ROWS,
    MAX_POINTS,
    Curve,
    Dashboard,
    format_facts,
    plot,
    resampled,
)

FACTS = {
    "step": 12, "loss": 3.5, "smoothed_loss": 3.25, "lr": 6e-4, "grad_norm": 0.5, "batch_tokens": 524288, "tokens_per_second": 12345.6,
    "tflops": 9.5,
    "mfu": None, "mfu_causal": None, "noise_scale": 2.5e5,
    "peak_memory": 3_200_000_000, "val_loss": None,
    "total_steps": 300, "total_passes": 2.5, "device": "EPYC, 2 cores", "precision": "bf16",
    "checkpoint_step": 280, "checkpoint_age": 61.0,
}  # fmt: skip
SCRIPT = f"""
import sys
from gptcli.cli.dashboard import Dashboard
board = Dashboard("runs/350M")
for step in range(1, 301):
    board.progress("train", step * 1000, 300_000, "tokens", **{{**{FACTS!r}, "step": step, "smoothed_loss": 3 + 8 / step}})
    if step == 200:
        board.warn("a message in between")
board.finish("train")
"""


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.parametrize("width", [80, 120])
def test_panel_is_as_wide_as_the_terminal_but_for_the_ctrl_c_behind_it(width):
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")
    } | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stderr=slave, stdin=slave, stdout=subprocess.PIPE, env=env
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert process.stdout is not None
    assert process.stdout.read() == b""
    text = shown.decode()
    assert "a message in between" in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("╭") :])
    lines = last.replace("\r", "").split("\n")
    assert len(lines[0]) == width - len("^C")
    for part in (
        "runs/350M",
        "step 300/300",
        "pass 2.50 of 2.50 over the data",
        "checkpoint of step 280, 1 min 01 s ago",
        " EPYC, 2 cores, bf16 ",
        "300k/300k tokens",
        "100.0%",
        "3.471",
        "3.027",
        "12.35k tokens/s",
        "MFU n/a",
        "memory 3.2 GB",
    ):
        assert part in last, (part, last)
    assert all(len(line) == width - len("^C") for line in lines if line.startswith("│"))
    assert "\x1b[?25l" not in text, "a process that is killed leaves a hidden cursor"


def test_without_a_terminal_progress_is_a_plain_line(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    board = Dashboard("runs/350M")
    for done in (1000, 2000):
        board.progress("train", done, 10_000, "tokens", **FACTS)
        board.progress("other", done / 1000, 2)
        clock[0] += 10
    board.finish("train")
    train, other = capsys.readouterr().err.splitlines()
    assert (
        train
        == "train: 2000/10k tokens (20%)  step 12  loss 3.25  lr 0.0006  tokens per second 12.35k  10 s, 1 min 20 s left"
    )
    assert other == "other: 2/2 (100%)  10 s, 0 s left"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_long_curves_are_shortened_and_keep_their_mean(values):
    curve = Curve()
    for value in values:
        curve.add(value)
    means = curve.means()
    assert len(means) <= MAX_POINTS
    assert min(values) - 1e-6 <= min(means) <= max(means) <= max(values) + 1e-6
    assert len(means) == len(values) or len(values) >= MAX_POINTS


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(30, 150))
def test_plot_fits_the_width_and_is_labelled_with_its_extremes(values, width):
    rows = plot(values, width)
    assert len(rows) == CURVE_ROWS
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= max(width, 20)
    assert sum("█" in row for row in rows) or max(values) == min(values)


def test_first_values_far_above_the_rest_are_cut_off():
    rows = plot([11.0, 9.0, *(4 - n / 50 for n in range(50))], 60)
    assert rows[0].startswith("3.980 ██")
    assert rows[-1].startswith("3.020 ")
    assert sum("█" in row for row in rows) == CURVE_ROWS
    assert plot([3.0, 2.5, 2.0], 40)[0].startswith("3.000 ")


def test_resampling_averages_only_many_values():
    assert resampled([1.0, 2.0], 10) == [1.0, 2.0]
    assert resampled([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]


@pytest.mark.parametrize(
    ("passes", "share", "shown"),
    [
        (0.1288, 1.0, "pass 0.129 of 0.129 over the data"),
        (0.1288, 0.5, "pass 0.064 of 0.129 over the data"),
        (0.00012, 1.0, "pass 0.000120 of 0.000120 over the data"),
        (1234.5, 0.1, "pass 123.45 of 1,234.50 over the data"),
    ],
)
def test_a_pass_is_rounded_as_their_number_is(passes, share, shown):
    assert shown in format_facts({**FACTS, "total_passes": passes}, share)


def test_unknown_facts_are_shown_as_not_available():
    words = " ".join(
        format_facts(
            {
                **FACTS,
                "smoothed_loss": None,
                "grad_norm": None,
                "noise_scale": None,
                "skipped": "why",
            },
            0.5,
        )
    )
    assert "loss n/a" in words
    assert "noise scale n/a" in words
    assert "update skipped" in words
    assert "MFU 41.2% (38.0% causal)" in " ".join(
        format_facts({**FACTS, "mfu": 0.412, "mfu_causal": 0.38}, 0.5)
    )
