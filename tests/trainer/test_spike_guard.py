from __future__ import annotations

import math

import numpy as np
import pytest

from gptcli.trainer.spike_guard import MIN_SPIKE_NATS, WINDOW_STEPS, SpikeGuard


def calm(guard: SpikeGuard, count: int, seed: int = 0) -> list[str | None]:
    """Losses that fall from 10 to 3 with noise of 0.05."""
    rng = np.random.default_rng(seed)
    return [
        guard.skip_reason(3 + 7 * math.exp(-step / 100) + 0.05 * rng.standard_normal(), 1.0)
        for step in range(count)
    ]


def test_no_update_of_a_calm_run_is_skipped():
    assert not any(calm(SpikeGuard(6.0), 5000))


def test_a_spike_is_skipped_and_does_not_change_the_mean():
    guard = SpikeGuard(6.0)
    calm(guard, 1000)
    mean = guard.state["mean"]
    assert guard.state["mean"] == pytest.approx(3, abs=0.05)
    assert math.sqrt(guard.state["variance"]) == pytest.approx(0.05, rel=0.5)
    for times in (1, 2, 3):
        assert "spike" in (guard.skip_reason(4.0, 1.0) or "")
        assert (guard.state["skipped"], guard.state["in_a_row"], guard.state["mean"]) == (
            times,
            times,
            mean,
        )
    assert guard.skip_reason(3.0, 1.0) is None
    assert (guard.state["skipped"], guard.state["in_a_row"]) == (3, 0)


@pytest.mark.parametrize(
    ("loss", "norm", "said"), [(math.nan, 1.0, "loss is nan"), (3.0, math.inf, "norm is inf")]
)
def test_numbers_that_are_not_finite_are_skipped_from_the_first_step_on(loss, norm, said):
    assert said in (SpikeGuard(0.0).skip_reason(loss, norm) or "")


def test_early_and_small_rises_are_no_spikes_and_0_turns_the_guard_off():
    early, flat, off = SpikeGuard(6.0), SpikeGuard(6.0), SpikeGuard(0.0)
    assert not any(early.skip_reason(loss, 1.0) for loss in [3.0] * (WINDOW_STEPS - 1) + [30.0])
    assert not any(
        flat.skip_reason(loss, 1.0) for loss in [3.0] * 200 + [3.0 + 0.9 * MIN_SPIKE_NATS]
    )
    assert not any(off.skip_reason(loss, 1.0) for loss in [3.0] * 200 + [30.0])


def test_the_state_is_all_that_a_resume_needs():
    whole, first = SpikeGuard(6.0), SpikeGuard(6.0)
    calm(whole, 300)
    calm(first, 200)
    second = SpikeGuard(6.0, dict(first.state))
    rng = np.random.default_rng(0)
    noise = [0.05 * rng.standard_normal() for _ in range(300)]
    for step in range(200, 300):
        second.skip_reason(3 + 7 * math.exp(-step / 100) + noise[step], 1.0)
    assert second.state == whole.state
