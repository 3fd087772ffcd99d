"""What loss a model reaches, and which size is best for a budget, by the published scaling laws, each by its name.

    kaplan              Kaplan et al. 2020: L(N, D) = ((Nc/N)^(aN/aD) + Dc/D)^aD with N without embeddings; its optimum N = 1.3e9·C^0.73
    gpt3                Brown et al. 2020, figure 3.1: L = 2.57·C^-0.048 along the frontier, C in PF-days
    chinchilla          Hoffmann et al. 2022, approach 3 as printed: L = E + A/N^alpha + B/D^beta
    chinchilla-refit    the same form, fitted again by Besiroglu et al. 2024

Losses are nats a token on each paper's own text and vocabulary: compare sizes within a law, never laws with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.model.config import ModelConfig

PF_DAY = 8.64e19  # FLOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best model for a number of FLOPs, by 6·N·D."""

    law: str
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JointLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta."""

    name: str
    source: str
    date: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> Optimum:
        """In closed form (Hoffmann et al., equation 4)."""
        a = self.beta / (self.alpha + self.beta)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (flops / 6) ** a
        tokens = flops / 6 / parameters
        return Optimum(law=self.name, parameters=parameters, tokens=tokens, loss=self.loss(parameters, tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class KaplanLaw:
    """Kaplan et al.'s constants; their N leaves embeddings out."""

    name: str = "kaplan"
    source: str = "Kaplan et al. 2020, Scaling Laws for Neural Language Models"
    date: str = "2020-01"

    def loss(self, parameters: float, tokens: float) -> float:
        """Equation 1.5 with the exponents of 1.1 and 1.2."""
        return ((8.8e13 / parameters) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095

    def learning(self, parameters: float, tokens: float, batch_tokens: float) -> float:
        """The loss on the way, after `tokens` in such batches: equation 1.6, its steps those of a batch far above critical."""
        loss = 3.0
        for _ in range(50):  # the critical batch depends on the loss: a contraction, settled long before
            steps = tokens / batch_tokens / (1 + critical_batch(loss) / batch_tokens)
            loss = (6.5e13 / parameters) ** 0.077 + (2.1e3 / steps) ** 0.76
        return loss

    def loss_of_compute(self, flops: float) -> float:
        """Equation 1.3, with the critical batch throughout."""
        return (3.1e8 / (flops / PF_DAY)) ** 0.050

    def optimum(self, flops: float) -> Optimum:
        parameters = 1.3e9 * (flops / PF_DAY) ** 0.73
        return Optimum(law=self.name, parameters=parameters, tokens=flops / 6 / parameters, loss=self.loss_of_compute(flops))


KAPLAN = KaplanLaw()
CHINCHILLA = JointLaw(
    name="chinchilla", source="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, approach 3 as printed", date="2022-03",
    E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28,
)  # fmt: skip
REFIT = JointLaw(
    name="chinchilla-refit", source="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt", date="2024-04",
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658,
)  # fmt: skip
LAWS: tuple[KaplanLaw | JointLaw, ...] = (KAPLAN, CHINCHILLA, REFIT)


def gpt3_loss(flops: float) -> float:
    """GPT-3, figure 3.1: validation loss along the compute frontier."""
    return 2.57 * (flops / PF_DAY) ** -0.048


def kaplan_batch(flops: float) -> float:
    """Tokens of the batch that Kaplan et al. find best for so much compute, equation 1.8."""
    return 2.0e6 * (flops / PF_DAY) ** 0.24


def critical_batch(loss: float) -> float:
    """Tokens of the batch beyond which more of them save little time (Kaplan et al., equation 1.4)."""
    return 2e8 / loss ** (1 / 0.21)


def without_embeddings(config: ModelConfig) -> int:
    """Parameters as Kaplan et al. count them."""
    return config.parameters - (config.vocab_size * (1 if config.tied else 2) + config.n_ctx) * config.d_model


def predicted_losses(config: ModelConfig, tokens: int) -> dict[str, float]:
    """By every law, in nats a token."""
    found = {"kaplan": KAPLAN.loss(without_embeddings(config), tokens), "gpt3": gpt3_loss(6.0 * config.parameters * tokens)}
    return found | {law.name: law.loss(config.parameters, tokens) for law in (CHINCHILLA, REFIT)}
