from __future__ import annotations

import math

import pytest

from gptcli.cost.scaling_forms import FORMS, RunResult

CONSTANTS = {
    "joint": (1.7, 400.0, 410.0, 0.34, 0.28),
    "compute": (3.0, 0.05),
    "kaplan": (6.4e13, 1.8e13, 0.076, 0.103),
    "floor": (2.0, 1.0, 0.1),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_fit_of_a_form_gives_back_its_constants(name: str) -> None:
    form, values = FORMS[name], CONSTANTS[name]
    runs = [
        RunResult(name="", parameters=n, tokens=d, loss=form.loss(values, n, d))
        for n in (10**7, 10**8, 10**9)
        for d in (10**9, 10**10, 10**11)
    ]
    assert form.fit(runs) == pytest.approx(values, rel=0.02)
    assert len(form.names) == len(values)
    if form.refit is not None:
        again = form.refit(runs, list(values), [1.0, 2.0, 0.0] * 3)
        assert again == pytest.approx(values, rel=0.02)


def test_compute_is_six_flops_per_parameter_and_token() -> None:
    run = RunResult(name="", parameters=10**7, tokens=2 * 10**8, loss=3.0)
    assert run.pf_days == pytest.approx(6 * 1e7 * 2e8 / 8.64e19)
    assert FORMS["compute"].loss((1.0, 1.0), 10**7, 2 * 10**8) == pytest.approx(1 / run.pf_days)
    assert math.isclose(FORMS["floor"].loss((2.0, 0.0, 1.0), 1e7, 2e8), 2.0)
