"""Tables of an evaluation report."""

from __future__ import annotations

from gptcli.evals.report import figure


def test_figures() -> None:
    assert figure(45.988, 0.6942, unit="%") == "45.99% ±0.69"
    assert figure(1234.5) == "1,234.50"
    assert figure(2.5e7, 3.0e5) == "2.5e+07 ±3e+05"
