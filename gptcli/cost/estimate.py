"""Estimate time, money and energy from FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptcli.cost.flops import CONVENTIONS, flops_per_token, parameters_by_part
from gptcli.cost.hardware import Assumption, Gpu, Precision, peak_flops, usual_precision
from gptcli.cost.inference import inference
from gptcli.cost.memory import TRAINING_BYTES, memory_by_part, min_gpus
from gptcli.cost.planner import Plan
from gptcli.cost.prices import Energy, Offer, energy, price_ranges, spoken
from gptcli.cost.scaling import RANGES, critical_batch_of, predicted_losses
from gptcli.cost.step_time import Trainer, evidence
from gptcli.model.config import ModelConfig
from gptcli.papers.models import PaperCompute

SECONDS_PER_HOUR = 3600
HOURS_PER_YEAR = 365 * 24
FLOPS_PER_PF_DAY = 1e15 * 86400


@dataclass(frozen=True, slots=True)
class Cluster:
    """GPUs that a run uses, with their throughput and price."""

    gpu: Gpu | None
    """GPU of hardware.toml; None for one described by its throughput only."""
    count: int
    throughput: Assumption
    """FLOP/s that each GPU sustains during training."""
    price: Assumption | None
    """Dollars per hour and GPU; None if unknown."""
    goodput: Assumption | None = None
    """Share of the wall-clock time spent training; None if the throughput is averaged over all of
    it.
    """
    uncertainty_factor: float = 1.0
    """Factor by which the throughput may be wrong, either way; 1 for a throughput given by the
    user.
    """
    described_memory: int | None = None
    """Memory in bytes of a GPU that has no row."""
    precision: Precision | None = None
    """Precision of matrix products, whose peak MFU refers to; None means that of the GPU's row."""
    trainer: Trainer | None = None
    """Trainer whose speed was predicted; None for a speed that was given or published."""
    offers: tuple[Offer, ...] = ()
    """Published prices of the GPU, or the user's; none if the price was given."""
    server: float | None = None
    """Power of a server's share over that of the board; None, here and below, means the table's."""
    pue: float | None = None
    """Power of the building over that of its servers."""
    carbon: float | None = None
    """Emissions in kg of CO2e per kWh."""

    @property
    def flops(self) -> float:
        """Average FLOP/s of one GPU over the whole run, goodput included."""
        return self.throughput.value * (1 if self.goodput is None else self.goodput.value)

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one GPU in bytes; None if unknown."""
        return self.described_memory if self.gpu is None else self.gpu.memory_bytes

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization during training, throughput over peak; None without a named GPU."""
        return None if self.peak is None else self.throughput.value / self.peak

    @property
    def peak(self) -> float | None:
        """Peak of dense products per second at the cluster's precision; None without a named GPU."""
        if self.gpu is None:
            return None
        return peak_flops(self.gpu, self.precision or usual_precision(self.gpu))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of a number of FLOPs and, if known, of the training run that they are."""

    name: str
    flops: float
    cluster: Cluster
    model: ModelConfig | None = None
    """Model that is trained; None if only the FLOPs are known, or for a model of another family."""
    parameters: int | None = None
    tokens: int | None = None
    basis: tuple[Assumption, ...] = ()
    """Assumptions that `flops` depends on."""
    plan: Plan | None = None
    """Layout that the cluster runs, if named or predicted."""
    batch_tokens: int | None = None
    """Tokens of a step; None if only the FLOPs are known."""
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the figures must know, such as idle GPUs."""
    days_by_gpus: tuple[tuple[int, float], ...] = ()
    """Days on the fewest GPUs that hold the model and on some more; none if their number is known."""

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU."""
        return self.flops / self.cluster.flops / SECONDS_PER_HOUR

    @property
    def gpu_years(self) -> float:
        """Years of one GPU, of 365 days."""
        return self.gpu_hours / HOURS_PER_YEAR

    @property
    def days(self) -> float:
        """Wall-clock days with the work divided evenly over the cluster."""
        return self.gpu_hours / self.cluster.count / 24

    @property
    def pf_days(self) -> float:
        """Petaflop/s-days: 8.64e19 FLOP each."""
        return self.flops / FLOPS_PER_PF_DAY

    @property
    def dollars(self) -> float | None:
        """Price in dollars; None if the price of a GPU-hour is unknown."""
        return None if self.cluster.price is None else self.gpu_hours * self.cluster.price.value

    @property
    def energy(self) -> Energy | None:
        """Energy and emissions; None if the power of the GPU is unknown."""
        cluster = self.cluster
        return energy(
            cluster.gpu,
            self.gpu_hours,
            server=cluster.server,
            pue=cluster.pue,
            carbon=cluster.carbon,
        )

    def between(self, value: float | None) -> list[float] | None:
        """Return the lower and upper bound of a figure that is proportional to time."""
        return (
            None
            if value is None
            else [value / self.cluster.uncertainty_factor, value * self.cluster.uncertainty_factor]
        )

    @property
    def assumptions(self) -> list[Assumption]:
        """Every constant that the estimate depends on."""
        gpu, price = self.cluster.gpu, self.cluster.price
        found = [*self.basis, self.cluster.throughput]
        found += [a for a in (self.cluster.goodput, price) if a is not None]
        found += [
            Assumption(
                f"price {number}, {spoken(offer.kind)}",
                offer.dollars_per_hour,
                "$ per GPU-hour",
                ": ".join(part for part in (offer.seller, offer.source) if part),
                offer.date,
                offer.url,
            )
            for number, offer in enumerate(self.cluster.offers, 1)
        ]
        if self.energy is not None:
            found += self.energy.assumptions
        found.append(
            Assumption("year", HOURS_PER_YEAR, "hours", "365 days, as in the cost article", "")
        )
        found.append(
            Assumption("PF-day", FLOPS_PER_PF_DAY, "FLOP", "GPT-3, Table D.1", "2020-05-28")
        )
        if gpu is not None:
            found.append(
                Assumption(
                    "peak",
                    self.cluster.peak or gpu.peak_flops,
                    "FLOP/s",
                    f"{gpu.name}, dense: {gpu.source}",
                    gpu.date,
                    gpu.url,
                )
            )
            found.append(
                Assumption(
                    "GPU memory",
                    gpu.memory_bytes,
                    "bytes",
                    f"{gpu.name}: {gpu.source}",
                    gpu.date,
                    gpu.url,
                )
            )
        if self.parameters is not None:
            each = sum(TRAINING_BYTES["fp32"].values())
            found.append(
                Assumption(
                    "training state",
                    each,
                    "bytes per parameter",
                    "fp32 weights, gradients, Adam's two moments",
                    "",
                )
            )
        if self.model is not None and self.model.attention == "banded":
            found.append(
                Assumption(
                    "band",
                    self.model.band,
                    "keys",
                    "ours: GPT-3's is unpublished; moves the causal FLOPs only",
                    "",
                )
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the report of `gpt cost --json`; unknown figures are None."""
        model, tokens, cluster, energy = self.model, self.tokens, self.cluster, self.energy
        memory, each = (
            None if self.parameters is None else memory_by_part(self.parameters, model),
            cluster.memory_bytes,
        )
        return {
            "name": self.name,
            "model": None if model is None else model.as_dict(),
            "tokens": tokens,
            "batch_tokens": self.batch_tokens,
            "critical_batch_tokens": None
            if model is None or tokens is None
            else critical_batch_of(model, tokens),
            "parameters": self.parameters,
            "parameters_by_part": None if model is None else parameters_by_part(model),
            "flops": self.flops,
            "flops_by_convention": self.flops_by_convention,
            "pf_days": self.pf_days,
            "gpu": cluster.gpu and cluster.gpu.name,
            "gpus": cluster.count,
            "idle_gpus": 0
            if self.plan is None or self.cluster.count <= self.plan.layout.processes
            else self.cluster.count - self.plan.layout.processes,
            "trainer": cluster.trainer,
            "speed_evidence": None
            if cluster.gpu is None or cluster.trainer is None
            else evidence(cluster.gpu),
            "throughput_flops": cluster.flops,
            "mfu": cluster.mfu,
            "mfu_peak_flops": cluster.peak,
            "mfu_convention": None if cluster.mfu is None else "6N",
            "goodput": None if cluster.goodput is None else cluster.goodput.value,
            "gpu_years": self.gpu_years,
            "gpu_hours": self.gpu_hours,
            "dollars": self.dollars,
            "days": self.days,
            "days_by_gpus": [{"gpus": gpus, "days": days} for gpus, days in self.days_by_gpus],
            "gpu_hours_range": self.between(self.gpu_hours),
            "dollars_range": self.between(self.dollars),
            "prices": [
                price._asdict()
                | {"dollars": [self.gpu_hours * price.low, self.gpu_hours * price.high]}
                for price in price_ranges(cluster.offers)
            ],
            "energy_kwh": None if energy is None else energy.kwh,
            "co2_kg": None if energy is None else energy.co2_kg,
            "layout": None if self.plan is None else self.plan.as_dict(),
            "losses": None if model is None or tokens is None else predicted_losses(model, tokens),
            "loss_ranges": None
            if model is None or tokens is None
            else {law: validity._asdict() for law, validity in RANGES.items()},
            "memory_bytes": memory,
            "least_gpus": each
            and memory
            and {part: min_gpus(memory[part], each) for part in ("training", "inference_16bit")},
            "inference": None if model is None else inference(model, cluster.gpu)._asdict(),
            "notes": list(self.notes),
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }

    @property
    def flops_by_convention(self) -> dict[str, float] | None:
        """FLOPs of the whole run by each convention of `flops.CONVENTIONS`; None without model and
        tokens.
        """
        if self.model is None or self.tokens is None:
            return None
        return {name: flops_per_token(self.model, name) * self.tokens for name in CONVENTIONS}


def price_training(
    name: str,
    model: ModelConfig,
    tokens: int,
    cluster: Cluster,
    *,
    tokens_source: str,
    plan: Plan | None = None,
    batch_tokens: int | None = None,
    batch_source: str = "",
    notes: tuple[str, ...] = (),
) -> Estimate:
    """Return the estimate of training `model` on `tokens` tokens by 6·N·D."""
    basis: tuple[Assumption, ...] = (
        Assumption(
            "FLOPs",
            6,
            "per parameter and token",
            "attention left out: GPT-3, Table D.1",
            "2020-05-28",
        ),
        Assumption("tokens", tokens, "tokens", tokens_source, ""),
    )
    if batch_tokens is not None:
        basis += (Assumption("batch", batch_tokens, "tokens", batch_source, ""),)
    return Estimate(
        name,
        flops_per_token(model, "6N") * tokens,
        cluster,
        model,
        model.parameters,
        tokens,
        basis,
        plan,
        batch_tokens,
        notes,
    )


def price_paper(
    row: PaperCompute, tokens: int, cluster: Cluster, *, tokens_source: str
) -> Estimate:
    """Return the estimate of a model of another family, by the FLOPs of GPT-3's Table D.1."""
    half = (
        ": encoder and decoder see half of the tokens each" if row.flops_per_parameter == 3 else ""
    )
    basis: tuple[Assumption, ...] = (
        Assumption(
            "FLOPs",
            row.flops_per_parameter,
            "per parameter and token",
            f"GPT-3, Table D.1{half}",
            "2020-05-28",
        ),
        Assumption("model", row.parameters, "parameters", row.source, row.date),
        Assumption("tokens", tokens, "tokens", tokens_source, ""),
    )
    flops = row.flops_per_parameter * row.parameters * tokens
    return Estimate(row.name, flops, cluster, None, round(row.parameters), tokens, basis)
