"""Pages of one run and of several are complete, escaped and self-contained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gptcli.runs.curves import MAX_DATA_POINTS
from gptcli.runs.record import Record
from gptcli.runs.report import TITLES, run_page
from tests.runs.example_run import EVALUATION, RUN_TOML, lines, parsed, record, rows

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""


def data_of(root: ElementTree.Element) -> dict[str, Any]:
    return json.loads(root.findtext(".//script[@id='data']", ""))


def facts(root: ElementTree.Element) -> dict[str, str]:
    return {row.findtext("dt", ""): row.findtext("dd", "") for row in root.iterfind(".//dl/div")}


def test_the_reported_speed_is_the_median_of_the_newest_steps():
    """The last step may be short, and the first ones are slow."""
    one = record(300)
    for number, line in enumerate(one.lines):
        line["tokens_per_second"] = 1.0 if number < 200 or number == 299 else 2000.0
    assert facts(parsed(run_page(one)))["tokens/s"] == "2,000"


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_the_page_of_a_run_is_well_formed_and_complete(count):
    one = record(count)
    one.lines[-1]["val_loss"] = 4.25
    samples = [
        {"step": n, "tokens": 64 * n, "prompt": "Once <b>", "text": "\x1b[1m a & b\n\u2028"}
        for n in (1, 2, 3, 4, 5, 6)
    ]
    root = parsed(
        run_page(
            Record(
                folder=one.folder,
                resolved=one.resolved,
                lines=one.lines,
                samples=samples,
                evaluations=[EVALUATION],
            )
        )
    )
    assert root.findtext("head/title") == "gpt2: run"
    assert len(root.findall("body/main/section/svg")) == 5
    assert root.findtext(".//pre") == RUN_TOML
    known = facts(root)
    assert (known["validation loss"], known["peak memory"], known["parameters"]) == (
        "4.2500",
        "3.2 GB",
        "1,234",
    )
    assert known["tokens"] == ("64k" if count == 1000 else f"{64 * count} of 64k")
    titles = [item.text or "" for item in root.iterfind(".//div[@class='texts']/div/h3")]
    assert [title.split(",")[0] for title in titles] == [
        "step 6",
        "step 4",
        "step 3",
        "step 1",
        "step 5",
        "step 2",
    ]
    assert "2 more" in {summary.text for summary in root.iterfind("body/details/summary")}
    sample = root.find(".//blockquote/b")
    assert sample is not None
    assert sample.text == "Once <b>"
    assert sample.tail == "\N{REPLACEMENT CHARACTER}[1m a & b\n\N{REPLACEMENT CHARACTER}"
    assert rows(root)[1:] == [
        ["a <b>.txt", "nats per token", "2.5000 ± 0.0100", "5,000 tokens", "–"],
        ["a <b>.txt", "perplexity", "12.18", "5,000 tokens", "–"],
        ["lambada last_word, K=0", "accuracy", "25.00 % ± 6.93", "40 items", "45.99 (gpt2)"],
        ["lambada last_word, K=0", "perplexity", "17.28", "40 items", "–"],
    ]


def test_measured_metrics_are_drawn_and_others_are_left_out():
    before = run_page(record(3))
    assert {"MFU", "MFU, causal"}.isdisjoint(facts(parsed(before)))
    assert "n/a" not in facts(parsed(before)).values()
    assert "<h2>Samples" not in before
    assert "<h2>Evaluations" not in before
    more = [
        {
            **line,
            "mfu": 0.4,
            "mfu_causal": 0.35,
            "noise_scale": 1e5,
            "skipped": "a spike",
            "loss": None,
        }
        for line in lines(3)
    ]
    root = parsed(run_page(Record(folder=Path("x"), resolved="", lines=[*lines(3), *more])))
    assert len(root.findall("body/main/section/svg")) == 6
    known = facts(root)
    assert (known["MFU"], known["MFU, causal"], known["updates skipped"]) == ("40.0%", "35.0%", "3")
    assert "training loss, 3 steps" not in known
    titled = {one.findtext("dt"): one.get("title") for one in root.iterfind(".//dl/div")}
    assert "Model FLOPs utilization" in (titled["MFU"] or "")
    assert {*TITLES} <= {*titled}
    assert known["time in steps"] == "12 s"
    assert "slowest process" not in known
    more[-1]["rank_own_seconds"] = [0.2, 0.2, 0.5]
    root = parsed(run_page(Record(folder=Path("x"), resolved="", lines=more)))
    assert facts(root)["slowest process"] == "2, 2.50 times the median"


def test_the_sources_of_a_mixture_have_a_table_and_a_chart():
    more = [
        {
            **line,
            "loss_web": 3.0,
            "tokens_web": 48 * line["step"],
            "passes_web": 0.5,
            "tokens_books": 16 * line["step"],
            "passes_books": 2.25,
        }
        for line in lines(3)
    ]
    more[-1]["val_loss_books"] = 4.5
    root = parsed(run_page(Record(folder=Path("x"), resolved="", lines=more)))
    share = f"{144 / more[-1]['tokens']:.1%}"
    assert ["web", "144", share, "0.5", "3.0000", "n/a"] in rows(root)
    assert rows(root)[-1][-3:] == ["2.25", "n/a", "4.5000"]
    assert "Training loss by source " in {head.text for head in root.iter("h2")}


def test_the_page_shows_the_provenance_of_a_run():
    head = [
        "gpt 0, python 3",
        "date: 2030-01-01T00:00:00Z",
        "host: somewhere",
        "commit: <b>",
        "val_tokens: 1,000, from the shards",
        "data: /home/someone/shards, 10 training tokens, sha256 ab",
        "passes: 0.5",
        "resumed: 2030-02-01T00:00:00Z; host c",
    ]
    resolved = "".join(f"# {line}\n" for line in head) + "\nn_ctx = 64\neval_tokens = 150\n"
    root = parsed(run_page(record(3, resolved=resolved)))
    known = facts(root)
    assert (known["date"], known["commit"], known["passes"]) == (
        "2030-01-01T00:00:00Z",
        "<b>",
        "0.5",
    )
    assert known["data"].startswith("shards, 10 training")
    assert "host" not in known
    planned = facts(parsed(run_page(record(3, resolved=f"{resolved}tokens = 640\n"))))
    assert (planned["tokens"], planned["passes"]) == ("192 of 640", "0.15 of 0.5")
    done = facts(parsed(run_page(record(10, resolved=f"{resolved}tokens = 640\n"))))
    assert (done["tokens"], done["passes"]) == ("640", "0.5")
    page = run_page(record(3, resolved=resolved))
    assert not re.search("somewhere|someone|host c", page), "pages are published"
    assert "How it was made" not in run_page(record(3))


def test_the_page_says_on_how_many_tokens_the_validation_loss_is():
    head = "# gpt 0\n# val_tokens: 1,000, from the shards\n\n"
    validated = record(3, resolved=f"{head}n_ctx = 64\neval_tokens = 150\n")
    validated.lines[-1]["val_loss"] = 3.5
    known = facts(parsed(run_page(validated)))
    assert (known["validation loss"], known["validation tokens"]) == (
        "3.5000",
        "128 of 1,000 tokens",
    )
    del validated.lines[-1]["val_loss"]
    assert "validation tokens" not in facts(parsed(run_page(validated)))


def test_scores_of_tasks_and_evaluations_are_drawn_over_training():
    more = lines(6)
    for number in (1, 3, 5):
        more[number]["lambada_accuracy"] = 10.0 * number
        more[number]["lambada_perplexity"] = 100.0 / number
        more[number]["val_loss_books"] = 4.0
    evaluation: dict[str, Any] = EVALUATION
    earlier = {**evaluation, "step": 3, "losses": [{**evaluation["losses"][0], "loss": 3.5}]}
    root = parsed(
        run_page(
            Record(
                folder=Path("x"),
                resolved="",
                lines=more,
                evaluations=[{**EVALUATION, "step": 6}, earlier],
            )
        )
    )
    charts = {
        (one["title"], curve["name"]): curve
        for one in data_of(root)["charts"]
        for curve in one["curves"]
    }
    xs = data_of(root)["xs"]
    tasks = charts["Tasks at checkpoints", "lambada_accuracy"]
    assert (xs[tasks["x"]], tasks["y"]) == ([128, 256, 384], [10.0, 30.0, 50.0])
    assert charts["Tasks at checkpoints", "lambada_perplexity"]["y"][0] == 100.0
    assert charts["Validation loss by set", "books"]["y"] == [4.0, 4.0, 4.0]
    title = "Evaluations over training, nats per token"
    loss = charts[title, "a <b>.txt: nats per token"]
    assert (xs[loss["x"]], loss["y"]) == ([192, 384], [3.5, 2.5])


def test_the_data_of_the_page_have_steps_and_time():
    one = record(5000)
    runs = data_of(parsed(run_page(one)))["runs"]
    assert len(runs) == 1
    assert len(runs[0]["tokens"]) <= MAX_DATA_POINTS
    assert runs[0]["tokens"][-1] == 64 * 5000
    assert runs[0]["step"][-1] == 5000
    assert runs[0]["seconds"][-1] == 2.0 * 5000


def test_numbers_that_are_not_finite_are_left_out():
    one = record(5)
    one.lines[2]["loss"] = float("nan")
    one.lines[3]["grad_norm"] = float("inf")
    assert "NaN" not in run_page(one)
    assert [x for x, _ in one.series("loss")] == [64, 128, 256, 320]


@pytest.mark.skipif(not BROWSER, reason="needs chromium")
def test_the_script_draws_the_charts_anew_in_a_browser(tmp_path):
    """Every control is real: the view of the address is shown in it, and in the charts."""
    samples = [
        {"step": n, "tokens": 64 * n, "prompt": "One", "text": f" two {n} </script>"}
        for n in (1, 200)
    ]
    page = tmp_path / "report.html"
    page.write_text(run_page(record(300, resolved=RUN_TOML, samples=samples)), "utf-8")
    view = "#x=step&logx=off&logy=on&smooth=0&from=50&to=100&hide="
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri() + view],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert re.search(r'<form id="controls"[^>]*hidden', dom) is None
    assert "50 to 100 %" in dom
    assert dom.count('class="reader"') == 5
    loss = dom[dom.index("<h2>Loss") : dom.index("<h2>Learning rate")]
    assert ">step</text>" in loss
    ticks = re.findall(r'text-anchor="middle">(\w+)</text>', loss)
    assert (min(map(int, ticks)) >= 150, ticks[-1]) == (True, "300")
    assert 'type="checkbox" data-curve="training"' in loss
    assert "<del>1</del><ins>200</ins>" in dom


@pytest.mark.skipif(not BROWSER, reason="needs chromium")
def test_the_script_says_what_an_axis_leaves_out(tmp_path):
    """The running mean of the script is not that of the still picture, nor are the axes."""
    one = record(300)
    for number, line in enumerate(one.lines):
        line["loss"] = 9.0 if number < 9 else 3.0 + number % 2 / 10
        line["tokens_per_second"] = 900.0 if number == 150 else 100.0
    page = tmp_path / "report.html"
    text = run_page(one)
    page.write_text(text, "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    for shown in (text, dom):
        heads = dict(re.findall(r"<h2>([\w ]+) <small>([^<]*)</small></h2>", shown))
        assert heads["Loss"].startswith("nats per token, begins at ")
        assert heads["Throughput"] == "tokens per second, single steps up to 900"
        assert heads["Batch size"] == "tokens"
