"""Compare fine-tuning with and without pretraining, with three seeds each.

Usage: python compare.py, after `make out/base/model.safetensors`

It writes out/curves.json, and the learning curves to out/curves.svg.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from gptcli.finetune.model import accuracy, load_classifier
from gptcli.finetune.run import FinetuneRun, finetune
from gptcli.finetune.task import InputTransform, read_examples, read_task
from gptcli.model.safetensors_io import load_model
from gptcli.model.source import FINETUNE_REPORT
from gptcli.model.transformer import GPT
from gptcli.runs.charts import Series, line_chart
from gptcli.runs.metrics import read_metrics
from gptcli.runs.svg import Scale
from gptcli.tokenizer.load import load_tokenizer

OUT, BASE, SEEDS = Path("out"), Path("out/base"), (0, 1, 2)


def start(pretrained: bool, seed: int) -> GPT:
    """Return the pretrained model, or the same model with random weights."""
    model = load_model(BASE)
    if not pretrained:
        model.init_weights(seed)
    return model


def main() -> None:
    """Fine-tune all six models, print their accuracies and draw their learning curves."""
    task, tokenizer = read_task(Path("task.toml")), load_tokenizer(BASE)
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for name in ("pretrained", "not pretrained"):
        tests = []
        for seed in SEEDS:
            out = OUT / f"{name.replace(' ', '-')}-{seed}"
            if not (out / FINETUNE_REPORT).is_file():
                run = FinetuneRun(
                    task=task, data=Path(), out=out, start=name, seed=seed, resume=True
                )
                if finetune(run, start(name == "pretrained", seed), tokenizer)["interrupted"]:
                    raise SystemExit("Stopped. Run the same command again to continue.")
            lines = read_metrics(out)
            curves.setdefault(name, []).append(
                [(line["step"], line["val_accuracy"]) for line in lines if "val_accuracy" in line]
            )
            model, *_ = load_classifier(out)
            examples = read_examples(
                task,
                OUT / "test.jsonl",
                InputTransform(task.kind, tokenizer, model.gpt.config.n_ctx),
            )
            tests.append(accuracy(model, examples, task.batch).fraction)
            print(
                f"{name}, seed {seed}: validation {curves[name][-1][-1][1]:.4f}, "
                f"test {tests[-1]:.4f}",
                flush=True,
            )
        last = [curve[-1][1] for curve in curves[name]]
        print(
            f"{name}: validation {statistics.mean(last):.4f}, "
            f"test {statistics.mean(tests):.4f} ± {statistics.stdev(tests):.4f}"
        )
    (OUT / "curves.json").write_text(json.dumps(curves))
    draw(curves)


def draw(curves: dict[str, list[list[tuple[int, float]]]]) -> None:
    """Draw the learning curves to out/curves.svg: a line per seed, and their mean."""
    series = []
    for name, seeds in curves.items():
        means = [
            (points[0][0], 100 * statistics.mean(accuracy for _, accuracy in points))
            for points in zip(*seeds, strict=True)
        ]
        label = f"{means[-1][1]:.1f} %"
        series.append(Series(name, means, [""] * (len(means) - 1) + [label], line=True))
        series += [
            Series(name, [(x, 100 * y) for x, y in seed], line=True, dots=False, quiet=True)
            for seed in seeds
        ]
    steps = max(step for one in series for step, _ in one.points)
    svg = line_chart(
        "SST-2: fine-tuning with and without pretraining",
        "validation accuracy, mean of three seeds; grey: each seed",
        series,
        Scale("step", 0, steps * 1.05, log=False),
        Scale("accuracy, %", 45, 80, log=False),
    )
    Path("out/curves.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
