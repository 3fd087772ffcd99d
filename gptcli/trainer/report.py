"""`report.html`: the run's curves and configuration on one page that needs no network, no script and no other file."""

from __future__ import annotations

import html
import math
from pathlib import Path

from gptcli.files import atomic_write
from gptcli.trainer.config import Run
from gptcli.trainer.metrics import Line, read_lines, read_metrics
from gptcli.trainer.samples import SAMPLES

REPORT = "report.html"
POINTS = 400  # of a curve: longer ones are averaged
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 72, 24

Curve = list[tuple[float, float]]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #667; --line: #d8dce2; --back: #fff; --a: #2563eb; --b: #ea580c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa3ad; --line: #343a42; --back: #14171a; --a: #7aa7ff; --b: #ff9d5c }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 72rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin: .5rem 0 }
h2 { font-size: 1rem; margin: 0 }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; margin: 1.5rem 0 }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 }
dt { color: var(--dim); font-size: .85rem }
dd { margin: 0; font-size: 1.15rem }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--dim); font-size: 12px }
.grid { stroke: var(--line) }
.a, .b { fill: none; stroke-width: 1.75 }
.a { stroke: var(--a) }
.b { stroke: var(--b) }
.key i { display: inline-block; width: 1rem; height: .2rem; margin: 0 .4rem .25rem 1rem }
pre { overflow-x: auto; font-size: .85rem }
summary { cursor: pointer; color: var(--dim); margin: .5rem 0 }
blockquote { margin: .5rem 0; padding-left: .75rem; border-left: .2rem solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere }
blockquote b { font-weight: normal; color: var(--dim) }
@media (max-width: 40rem) { svg text { font-size: 19px } }
"""


def write_report(run: Run) -> None:
    """Draw the run folder's metrics and samples so far."""
    with atomic_write(Path(run.out) / REPORT, "w") as file:
        file.write(page(run, read_metrics(run.out), read_lines(Path(run.out) / SAMPLES)))


def page(run: Run, lines: list[Line], samples: list[Line]) -> str:
    last = lines[-1]
    val = series(lines, "val_loss")
    facts = {
        "parameters": f"{run.model.parameters:,}",
        "step": f"{last['step']:,}",
        "tokens": f"{last['tokens']:,}",
        "training loss": known(last["loss"], ".4f"),
        "validation loss": f"{val[-1][1]:.4f}" if val else "not measured",
        "tokens/s": f"{last['tokens_per_second']:,.0f}",
        "TFLOP/s a process": known(last.get("tflops"), ".4g"),
        "MFU": known(last.get("mfu"), ".1%"),
        "MFU, causal": known(last.get("mfu_causal"), ".1%"),
        "peak memory": "n/a" if last.get("peak_memory") is None else f"{last['peak_memory'] / 1e9:.3g} GB",
        "updates skipped": f"{sum('skipped' in line for line in lines):,}",
    }
    charts = {
        "Loss, nats a token": {"training": series(lines, "loss"), "validation": val},
        "Learning rate": {"": series(lines, "lr")},
        "Batch and gradient noise scale, tokens": {"batch": series(lines, "batch_tokens"), "noise scale": series(lines, "noise_scale")},
        "Gradient norm, before the clip": {"": series(lines, "grad_norm")},
        "Tokens per second": {"": series(lines, "tokens_per_second")},
        "Model FLOPs utilisation": {"6N + 12·L·C·T": series(lines, "mfu"), "causal": series(lines, "mfu_causal")},
    }
    drawn = [chart(title, curves) for title, curves in charts.items() if any(curves.values())]
    return document(f"{run.name}: {run.out.name}", facts, drawn, run.resolved, spoken(samples))


def document(title: str, facts: dict[str, str], charts: list[str], configuration: str, more: str = "") -> str:
    """A page that needs no network, no script and no other file."""
    title = html.escape(title)
    terms = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<dl>{terms}</dl>\n"
        f"<main>\n{''.join(charts)}</main>\n{more}"
        f"<h2>Configuration</h2>\n<pre>{html.escape(configuration)}</pre>\n</body>\n</html>\n"
    )


def spoken(samples: list[Line]) -> str:
    """What the model wrote over time, the newest first and open."""
    steps = sorted({sample["step"] for sample in samples}, reverse=True)
    parts = []
    for step in steps:
        here = [sample for sample in samples if sample["step"] == step]
        quotes = "".join(f"<blockquote><b>{visible(s['prompt'])}</b>{visible(s['text'])}</blockquote>" for s in here)
        opened = ' open="open"' if step == steps[0] else ""
        parts.append(f"<details{opened}><summary>step {step:,}, {short(here[0]['tokens'])} tokens</summary>{quotes}</details>\n")
    return f"<h2>Samples</h2>\n{''.join(parts)}" if parts else ""


def visible(text: str) -> str:
    """Escaped, and without the control characters that no page may hold."""
    return html.escape("".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def known(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"


def series(lines: list[Line], name: str) -> Curve:
    """(tokens, value) wherever the value was measured."""
    return [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]


def thinned(curve: Curve) -> Curve:
    """At most POINTS points, each the mean of its neighbours."""
    size = -(-len(curve) // POINTS)
    groups = [curve[start : start + size] for start in range(0, len(curve), size or 1)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def chart(title: str, curves: dict[str, Curve], *, log_x: bool = False) -> str:
    """One figure: the curves over tokens from 0, or over the logarithm of a rate, as inline SVG."""
    if log_x:
        curves = {name: [(math.log10(x), y) for x, y in curve] for name, curve in curves.items()}
    curves = {name: thinned(curve) for name, curve in curves.items() if curve}
    xs, ys = ([point[axis] for curve in curves.values() for point in curve] for axis in (0, 1))
    x_low = min(xs) if log_x else 0
    x_ticks, y_ticks = ticks(x_low, max(xs)), ticks(min(ys), max(ys))
    x_high, y_low, y_high = max(xs), min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low or 1) * (WIDTH - LEFT - 8)
        return across, 8 + (y_high - y) / (y_high - y_low or 1) * (HEIGHT - BOTTOM - 8)

    parts = []
    for y in y_ticks:
        _, down = at(x_low, y)
        parts.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{at(x, y_low)[0]:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{short(10**x if log_x else x)}</text>')
    for kind, curve in zip("ab", curves.values(), strict=False):
        path = "L".join(f"{across:.1f} {down:.1f}" for across, down in (at(x, y) for x, y in curve))
        parts.append(f'<path class="{kind}" d="M{path}"/>')
    keys = "".join(f'<i style="background: var(--{kind})"></i>{name}' for kind, name in zip("ab", curves, strict=False) if name)
    heading = f'<h2>{title}<small class="key">{keys}</small></h2>'
    return f'<section>{heading}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg></section>\n'


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values from `low` to `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):  # flat
        return [low]
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)] or [low]


def short(value: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.3g}"
