"""Loss and compute-optimal size by the published scaling laws.

    kaplan              Kaplan et al. 2020: L(N, D) = ((Nc/N)^(aN/aD) + Dc/D)^aD, N without embeddings; optimum N = 1.3e9·C^0.73
    kaplan-joint        the same form with the constants of Table 2, fitted to N and D together
    gpt3                Brown et al. 2020, figure 3.1: L = 2.57·C^-0.048 along the frontier, C in PF-days
    chinchilla          Hoffmann et al. 2022, approach 3 as printed: L = E + A/N^alpha + B/D^beta
    chinchilla-refit    the same form, refitted by Besiroglu et al. 2024

Losses are in nats per token on each paper's own text and vocabulary: compare sizes within a law,
never laws with each other. Each law has the range in which its authors fitted or tested it; outside
that range no figure is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gptcli.model.config import ModelConfig
from gptcli.numbers import amount, short

PF_DAY = 8.64e19  # FLOP
Span = tuple[float, float]


class Range(NamedTuple):
    """Range of models for which a law was fitted or tested, both ends included; None for a quantity
    that it does not depend on.
    """

    parameters: Span | None
    """Parameters, as the law counts them."""
    tokens: Span | None
    pf_days: Span
    """Compute of the frontier, for which the law gives an optimal size or a loss."""
    source: str

    def holds(self, parameters: float, tokens: float) -> bool:
        """Return whether the law applies to a model of this size on this many tokens; by its
        compute, if the law depends on nothing else.
        """
        if self.parameters is None or self.tokens is None:
            return self.holds_for(6.0 * parameters * tokens)
        return _is_inside(parameters, self.parameters) and _is_inside(tokens, self.tokens)

    def holds_for(self, flops: float) -> bool:
        """Return whether the law applies to the optimal model for `flops`."""
        return _is_inside(flops / PF_DAY, self.pf_days)

    def __str__(self) -> str:
        """Return the range that `holds` tests: N 70M to 70B, D 5B to 1.4T."""
        if self.parameters is None or self.tokens is None:
            return self.compute
        return f"N {_span(self.parameters)}, D {_span(self.tokens)}"

    @property
    def compute(self) -> str:
        """The range that `holds_for` tests: 6.00e18 to 5.76e23 FLOP."""
        low, high = self.pf_days
        return f"{short(low * PF_DAY)} to {short(high * PF_DAY)} FLOP"


def _is_inside(value: float, span: Span) -> bool:
    low, high = span
    return low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)


def _span(span: Span) -> str:
    return " to ".join(map(amount, span))


class Optimum(NamedTuple):
    """Compute-optimal model for a number of FLOPs, by 6·N·D."""

    law: str
    parameters: float
    tokens: float
    loss: float


class JointLaw(NamedTuple):
    """A law of the form L(N, D) = E + A/N^alpha + B/D^beta."""

    name: str
    source: str
    date: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    range: Range

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> Optimum:
        """Return the optimal model for `flops` in closed form (Hoffmann et al., equation 4)."""
        a = self.beta / (self.alpha + self.beta)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (flops / 6) ** a
        tokens = flops / 6 / parameters
        return Optimum(
            law=self.name, parameters=parameters, tokens=tokens, loss=self.loss(parameters, tokens)
        )


class KaplanLaw(NamedTuple):
    """Kaplan et al.'s law with their constants; their N leaves embeddings out."""

    name: str = "kaplan"
    source: str = "Kaplan et al. 2020, Scaling Laws for Neural Language Models"
    date: str = "2020-01"
    range: Range = Range(
        parameters=(768, 1.5e9), tokens=(22e6, 23e9), pf_days=(1e-7, 10),
        source="section 3: 768 to 1.5 billion non-embedding parameters, 22 million to 23 billion tokens; section 1.2: eight orders of "
        "magnitude of compute, which end near 10 PF-days in figure 1",
    )  # fmt: skip

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss by equation 1.5, with the exponents of 1.1 and 1.2."""
        return ((8.8e13 / parameters) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095

    def joint_loss(self, parameters: float, tokens: float) -> float:
        """Return the loss by equation 1.5 with the constants of Table 2, which were fitted to runs
        of different sizes and tokens together.
        """
        return ((6.4e13 / parameters) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103

    def learning(self, parameters: float, tokens: float, batch_tokens: float) -> float:
        """Return the loss during training, after `tokens` in batches of `batch_tokens` (equation
        1.6).

        Its step count is that of a batch far above the critical one.
        """
        loss = 3.0
        # the critical batch depends on the loss: a fixed point, reached long before 50 iterations
        for _ in range(50):
            steps = tokens / batch_tokens / (1 + critical_batch(loss) / batch_tokens)
            loss = (6.5e13 / parameters) ** 0.077 + (2.1e3 / steps) ** 0.76
        return loss

    def loss_of_compute(self, flops: float) -> float:
        """Return the loss by equation 1.3, with the critical batch throughout."""
        return (3.1e8 / (flops / PF_DAY)) ** 0.050

    def optimum(self, flops: float) -> Optimum:
        """Return the optimal model for `flops`: N = 1.3e9·C^0.73, C in PF-days."""
        parameters = 1.3e9 * (flops / PF_DAY) ** 0.73
        return Optimum(
            law=self.name,
            parameters=parameters,
            tokens=flops / 6 / parameters,
            loss=self.loss_of_compute(flops),
        )


KAPLAN = KaplanLaw()
GPT3_RANGE = Range(
    parameters=None,
    tokens=None,
    pf_days=(1e-6, 3640),
    source="GPT-3, figure 3.1: its axis from 1e-6 PF-days, its largest model at 3.64e3 (Table D.1)",
)
HOFFMANN_RANGE = Range(
    parameters=(70e6, 70e9), tokens=(5e9, 1.4e12), pf_days=(6e18 / PF_DAY, 5.76e23 / PF_DAY),
    source="Hoffmann et al. 2022: models of 70M to 16B parameters on 5B to 500B tokens, from 6e18 FLOP on, and the test of the law: "
    "Chinchilla, 70B parameters on 1.4T tokens, 5.76e23 FLOP",
)  # fmt: skip
CHINCHILLA = JointLaw(
    name="chinchilla", source="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, approach 3 as printed", date="2022-03",
    E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, range=HOFFMANN_RANGE,
)  # fmt: skip
REFIT = JointLaw(
    name="chinchilla-refit", source="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt", date="2024-04",
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, range=HOFFMANN_RANGE,
)  # fmt: skip
LAWS: tuple[KaplanLaw | JointLaw, ...] = (KAPLAN, CHINCHILLA, REFIT)


def gpt3_loss(flops: float) -> float:
    """Return the validation loss along the compute frontier (GPT-3, figure 3.1)."""
    return 2.57 * (flops / PF_DAY) ** -0.048


def kaplan_batch(flops: float) -> float:
    """Return the optimal batch in tokens for `flops` (Kaplan et al., equation 1.8)."""
    return 2.0e6 * (flops / PF_DAY) ** 0.24


def critical_batch(loss: float) -> float:
    """Return the critical batch in tokens at a loss: larger ones save little time (Kaplan et al.,
    equation 1.4).
    """
    return 2e8 / loss ** (1 / 0.21)


def critical_batch_of(config: ModelConfig, tokens: int) -> float | None:
    """Return the critical batch in tokens at the end of a run, by Kaplan et al.'s loss or else by
    GPT-3's; None outside the range of both laws.
    """
    losses = predicted_losses(config, tokens)
    loss = losses["kaplan"] or losses["gpt3"]
    return None if loss is None else critical_batch(loss)


def without_embeddings(config: ModelConfig) -> int:
    """Return the parameter count of Kaplan et al., without embeddings."""
    return (
        config.parameters
        - (config.vocab_size * (1 if config.tied else 2) + config.n_ctx) * config.d_model
    )


def predicted_losses(config: ModelConfig, tokens: int) -> dict[str, float | None]:
    """Return the loss by every law in nats per token; None outside the range of the law."""
    bare, n = without_embeddings(config), config.parameters
    in_kaplans = KAPLAN.range.holds(bare, tokens)
    return {
        "kaplan": KAPLAN.loss(bare, tokens) if in_kaplans else None,
        "kaplan-joint": KAPLAN.joint_loss(bare, tokens) if in_kaplans else None,
        "gpt3": gpt3_loss(6.0 * n * tokens) if GPT3_RANGE.holds(n, tokens) else None,
        **{
            law.name: law.loss(n, tokens) if law.range.holds(n, tokens) else None
            for law in (CHINCHILLA, REFIT)
        },
    }


RANGES = {
    "kaplan": KAPLAN.range,
    "kaplan-joint": KAPLAN.range,
    "gpt3": GPT3_RANGE,
    CHINCHILLA.name: CHINCHILLA.range,
    REFIT.name: REFIT.range,
}


def optimal_report(flops: float) -> dict[str, Any]:
    """Return the compute-optimal model by each law, and the batch sizes, as a JSON object.

    Values outside the range of a law are None.
    """
    rows = []
    for law in LAWS:
        row: dict[str, Any] = law.optimum(flops)._asdict()
        row["tokens_per_parameter"] = row["tokens"] / row["parameters"]
        if not law.range.holds_for(flops):
            row |= dict.fromkeys(row.keys() - {"law"})
        low, high = (pf_days * PF_DAY for pf_days in law.range.pf_days)
        rows.append(row | {"source": law.source, "date": law.date, "flops_range": [low, high]})
    loss = gpt3_loss(flops) if GPT3_RANGE.holds_for(flops) else None
    return {
        "flops": flops,
        "optimal": rows,
        "gpt3_loss": loss,
        "best_batch_tokens": kaplan_batch(flops) if KAPLAN.range.holds_for(flops) else None,
        "critical_batch_tokens": None if loss is None else critical_batch(loss),
    }
