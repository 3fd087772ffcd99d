from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.scaling import (
    CHINCHILLA,
    GPT3_RANGE,
    KAPLAN,
    LAWS,
    PF_DAY,
    RANGES,
    REFIT,
    JointLaw,
    critical_batch,
    gpt3_loss,
    kaplan_batch,
    predicted_losses,
    without_embeddings,
)  # fmt: skip
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import MODELS

budgets = st.floats(1e17, 1e27)


def test_tokens_per_parameter_at_chinchillas_budget() -> None:
    """At 5.76e23 FLOP the print implies 92 tokens a parameter and the refit 18.4."""
    printed, refit = (law.optimum(5.76e23) for law in (CHINCHILLA, REFIT))
    assert printed.tokens / printed.parameters == pytest.approx(92, abs=1)
    assert refit.tokens / refit.parameters == pytest.approx(18.4, abs=0.05)


def test_gpt3s_own_fit() -> None:
    assert gpt3_loss(3640 * PF_DAY) == pytest.approx(1.734, abs=0.0005)


@pytest.mark.parametrize(("parameters", "tokens"), [(8.8e13, float("inf")), (float("inf"), 5.4e13)])
def test_kaplans_critical_sizes_have_a_loss_of_one(parameters: float, tokens: float) -> None:
    assert KAPLAN.loss(parameters, tokens) == pytest.approx(1)


def test_kaplans_limits() -> None:
    assert KAPLAN.loss(1e9, float("inf")) == pytest.approx((8.8e13 / 1e9) ** 0.076)
    assert KAPLAN.loss(float("inf"), 1e10) == pytest.approx((5.4e13 / 1e10) ** 0.095)
    assert KAPLAN.joint_loss(1e9, float("inf")) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert KAPLAN.joint_loss(float("inf"), 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103)
    assert KAPLAN.loss_of_compute(3.1e8 * PF_DAY) == pytest.approx(1)
    assert KAPLAN.optimum(PF_DAY).parameters == pytest.approx(1.3e9)
    assert kaplan_batch(PF_DAY) == pytest.approx(2.0e6)
    assert critical_batch(1.0) == 2e8


@pytest.mark.parametrize("law", [CHINCHILLA, REFIT], ids=lambda law: law.name)
@given(flops=budgets, away=st.floats(0.2, 5))
def test_no_other_size_is_better(law: JointLaw, flops: float, away: float) -> None:
    best = law.optimum(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    assert law.loss(best.parameters * away, best.tokens / away) >= best.loss - 1e-9


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_sources(law: JointLaw) -> None:
    assert law.source
    assert law.date


def test_losses_of_gpt3() -> None:
    """GPT-3 is larger than any model that the other laws were fitted to or tested on."""
    losses = predicted_losses(ModelConfig.from_paper(find_size("175B")), 300 * 10**9)
    assert losses["gpt3"] == pytest.approx(1.734, abs=0.001)
    assert {name for name, loss in losses.items() if loss is None} == {
        "kaplan",
        "kaplan-joint",
        "chinchilla",
        "chinchilla-refit",
    }


@given(
    st.sampled_from([model.name for model in MODELS]),
    st.floats(0, 15).map(lambda exponent: round(10**exponent)),
)
def test_a_law_gives_a_loss_in_its_range_and_nowhere_else(size: str, tokens: int) -> None:
    model = ModelConfig.from_paper(find_size(size))
    losses = predicted_losses(model, tokens)
    assert losses.keys() == RANGES.keys()
    for law, span in (
        ("kaplan", (22e6, 23e9)),
        ("kaplan-joint", (22e6, 23e9)),
        ("chinchilla", (5e9, 1.4e12)),
        ("chinchilla-refit", (5e9, 1.4e12)),
    ):
        n, sizes = (
            (without_embeddings(model), (768, 1.5e9))
            if law.startswith("kaplan")
            else (model.parameters, (70e6, 70e9))
        )
        inside = sizes[0] <= n <= sizes[1] and span[0] <= tokens <= span[1]
        assert (losses[law] is not None) == inside
    assert (losses["gpt3"] is not None) == (1e-6 <= 6 * model.parameters * tokens / PF_DAY <= 3640)


def test_both_ends_of_a_range_are_inside() -> None:
    for law in LAWS:
        for flops in (pf_days * PF_DAY for pf_days in law.range.pf_days):
            assert law.range.holds_for(flops)
        assert not law.range.holds_for(law.range.pf_days[0] * PF_DAY / 1.01)
        assert not law.range.holds_for(law.range.pf_days[1] * PF_DAY * 1.01)
    assert str(KAPLAN.range) == "N 768 to 1.5B, D 22M to 23B"
    assert str(REFIT.range) == "N 70M to 70B, D 5B to 1.4T"
    assert REFIT.range.compute == "6.00e18 to 5.76e23 FLOP"
    assert str(GPT3_RANGE) == "8.64e13 to 3.14e23 FLOP"
    assert all(within.source for within in RANGES.values())


def test_kaplans_curves() -> None:
    """Equation 1.6: a loss falls with steps to that of its size alone; larger batches waste tokens,
    and none saves any.
    """
    limit = (6.5e13 / 1e9) ** 0.077
    assert KAPLAN.learning(1e9, 1e18, 1e6) == pytest.approx(limit, rel=1e-3)
    losses = [KAPLAN.learning(1e9, tokens, 5e5) for tokens in (1e9, 1e10, 1e11)]
    assert losses == sorted(losses, reverse=True)
    assert KAPLAN.learning(1e9, 1e10, 1e8) > KAPLAN.learning(1e9, 1e10, 1e5)
    loss = KAPLAN.learning(1e9, 1e10, 5e5)
    steps = 1e10 / 5e5 / (1 + critical_batch(loss) / 5e5)
    assert loss == pytest.approx(limit + (2.1e3 / steps) ** 0.76), (
        "the critical batch is that of the loss itself"
    )


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_without_embeddings(tied: bool, tables: int) -> None:
    config = ModelConfig(n_layer=2, n_head=2, d_model=8, n_ctx=16, vocab_size=10, tied=tied)
    assert without_embeddings(config) == config.parameters - tables * 10 * 8 - 16 * 8


def test_constants_as_printed() -> None:
    """Hoffmann et al. 2022, approach 3; Besiroglu et al. 2024, table 1: the limits of no data, of
    one parameter and of one token.
    """
    far = float("inf")
    for law, E, A, B, alpha, beta in (
        (CHINCHILLA, 1.69, 406.4, 410.7, 0.34, 0.28),
        (REFIT, 1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    ):
        assert law.loss(far, far) == E
        assert (law.loss(1, far), law.loss(far, 1)) == (E + A, E + B)
        assert law.loss(1e9, far) == pytest.approx(E + A / 1e9**alpha)
        assert law.loss(far, 1e9) == pytest.approx(E + B / 1e9**beta)


def test_exponents_of_compute() -> None:
    """Ten times the compute of a PF-day: Kaplan et al., equations 1.3, 1.7 and 1.8, and GPT-3's
    0.048.
    """
    best = KAPLAN.optimum(10 * PF_DAY)
    assert best.parameters == pytest.approx(1.3e9 * 10**0.73)
    assert 6 * best.parameters * best.tokens == pytest.approx(8.64e20)
    assert best.loss == KAPLAN.loss_of_compute(10 * PF_DAY) == pytest.approx(3.1e7**0.050)
    assert (gpt3_loss(PF_DAY), gpt3_loss(10 * PF_DAY)) == pytest.approx((2.57, 2.57 / 10**0.048))
    assert kaplan_batch(10 * PF_DAY) == pytest.approx(2.0e6 * 10**0.24)
    assert critical_batch(2.0) == pytest.approx(2e8 / 2 ** (1 / 0.21))


def test_each_laws_loss_of_a_small_model() -> None:
    """Kaplan's parameters are those without embeddings: 50,257 entries and 1,024 positions of width
    768.
    """
    config, tokens = ModelConfig.from_paper(find_size("gpt2")), 10**10
    losses = predicted_losses(config, tokens)
    assert losses["kaplan"] == KAPLAN.loss(config.parameters - (50_257 + 1024) * 768, tokens)
    assert losses["gpt3"] == gpt3_loss(6.0 * config.parameters * tokens)
    assert losses["chinchilla"] == CHINCHILLA.loss(config.parameters, tokens)
    assert losses["chinchilla-refit"] == REFIT.loss(config.parameters, tokens)
