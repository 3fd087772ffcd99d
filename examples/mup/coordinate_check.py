"""Check whether activations keep their scale as the model grows wider, with and without --mup.

Usage: python coordinate_check.py

Each width is trained for a few steps of `gpt train` at one learning rate. The script prints a table
and draws out/coordinate_check.svg.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gptcli.cli.train_options import given_values
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.runs.charts import Series, line_chart
from gptcli.runs.svg import Scale
from gptcli.trainer.config import Run
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.resolve import resolve_run
from gptcli.trainer.schedule import Rates

WIDTHS, BASE, D_HEAD, STEPS, LR = (128, 256, 512, 1024), 128, 32, 5, 3e-3
PARTS = {
    "c_attn": "h.1.attn.c_attn",
    "attention": "h.1.attn",
    "mlp": "h.1.mlp",
    "block": "h.1",
    "logits": "lm_head",
}
DRAWN = ("attention", "mlp", "block")


def activation_scales(
    width: int, *, use_mup: bool, base: int = BASE, steps: int = STEPS, lr: float = LR
) -> dict[str, float]:
    """Return the mean absolute output of each part, after `steps` steps on one fixed batch."""
    options = {
        "n_layer": "2",
        "n_head": str(width // D_HEAD),
        "d_model": str(width),
        "n_ctx": "64",
        "tokens": "1M",
        "batch_tokens": "256",
    }
    options |= {
        "lr": str(lr),
        "weight_decay": "0",
        "layout": "dp=1",
        "micro_batch": "4",
        "precision": "fp32",
        "compile": "off",
    }
    options |= {"mup": str(base)} if use_mup else {}
    plan = resolve_run(given_values(options, None, resume=False), vocab_size=256)
    run = Run(
        name=plan.name,
        out=Path(),
        data=Path(),
        model=plan.model,
        train=plan.train,
        data_sha256="",
        tokenizer_sha256="",
        eot_id=0,
    )
    train_step = build_train_step(run, RankContext(torch.device("cpu")), SILENT)
    idx_BT = torch.randint(0, 256, (4, 65), generator=torch.Generator().manual_seed(1))
    inputs, targets = idx_BT[:, :-1], idx_BT[:, 1:]
    for step in range(steps):
        train_step([(inputs, targets)], step=step, batch_tokens=targets.numel(), rates=Rates(lr))
    scales: dict[str, float] = {}
    for part, name in PARTS.items():
        train_step.model.get_submodule(name).register_forward_hook(
            lambda _, __, out, part=part: scales.update({part: out.abs().mean().item()})
        )
    with torch.no_grad():
        train_step.model(inputs)
    return scales


def draw(table: dict[bool, list[dict[str, float]]]) -> str:
    """Return a chart of the scales by width, without muP and with it."""
    series = [
        Series(
            part + ", muP" * use_mup,
            [(width, scales[part]) for width, scales in zip(WIDTHS, rows, strict=True)],
            line=True,
            dashed=use_mup,
        )
        for use_mup, rows in table.items()
        for part in DRAWN
    ]
    values = [value for one in series for _, value in one.points]
    return line_chart(
        "Do activations keep their scale as the model grows wider?",
        f"mean absolute activation after {STEPS} steps; solid: standard, dashed: muP",
        series,
        Scale("d_model, logarithmic", WIDTHS[0] / 1.2, WIDTHS[-1] * 1.2),
        Scale("mean |activation|, logarithmic", min(values) / 1.5, max(values) * 1.5),
    )


def main() -> None:
    """Print the table of scales and draw it."""
    table: dict[bool, list[dict[str, float]]] = {}
    for use_mup in (False, True):
        table[use_mup] = [activation_scales(width, use_mup=use_mup) for width in WIDTHS]
        print(
            f"{'muP' if use_mup else 'standard':<10}"
            + "".join(f"{width:>10}" for width in WIDTHS)
            + "   last / first"
        )
        for part in PARTS:
            row = [scales[part] for scales in table[use_mup]]
            print(
                f"{part:<10}"
                + "".join(f"{value:>10.4f}" for value in row)
                + f"{row[-1] / row[0]:>15.2f}"
            )
    Path("out/coordinate_check.svg").write_text(draw(table), encoding="utf-8")


if __name__ == "__main__":
    main()
