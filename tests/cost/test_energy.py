"""Patterson et al. 2021, Table 4: 14.8 days of 10,000 V100 drew 1,287 MWh and emitted 552 t of
CO2e.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptcli.cost.energy import energy
from gptcli.cost.hardware import find_gpu


def test_gpt3s_energy() -> None:
    used = energy(find_gpu("v100"), 14.8 * 24 * 10_000)
    assert used is not None
    assert used.kwh == pytest.approx(1_287_000, rel=0.005)
    assert used.co2_kg == pytest.approx(552_000, rel=0.005)


def test_an_hour_at_a_kilowatt() -> None:
    used = energy(find_gpu("b200"), 1)
    assert used is not None
    assert used.kwh == pytest.approx(1.0 * 1.1 * 1.1)
    assert used.co2_kg == pytest.approx(used.kwh * 0.429)
    assert [a.value for a in used.assumptions] == [1000, 1.1, 1.1, 0.429]
    assert all(a.source and a.date and a.url for a in used.assumptions)


def test_what_nobody_knows() -> None:
    assert energy(None, 5) is None
    assert energy(replace(find_gpu("a100"), watts=None), 5) is None
