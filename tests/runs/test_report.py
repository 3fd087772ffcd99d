"""Pages of one run and of several are complete, escaped and self-contained."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.runs.record import Record, distinct_names, figures, read_record
from gptcli.runs.report import comparison_page, run_page

RUN_TOML = '# gpt 0, python 3\n# parameters: 1,234\n\nsize = "gpt2"  # <b> & more\nlr = 0.5\ntokens = 64000\nout = "x"\n'
EVALUATION = {
    "schema": "gpt.eval/1", "model": "elsewhere/run",
    "losses": [{"name": "a <b>.txt", "tokens": 5000, "loss": 2.5, "loss_stderr": 0.01, "perplexity": 12.18, "bits_per_byte": None}],
    "tasks": [{
        "task": "lambada", "scoring": "last_word", "shots": 0, "items": 40, "accuracy": 25.0, "accuracy_stderr": 6.93,
        "perplexity": 17.28, "perplexity_stderr": None,
        "paper": [{"metric": "accuracy", "score": 45.99, "model": "gpt2", "source": "Table 3"}],
    }],
}  # fmt: skip


def lines(count: int, **more: object) -> list[dict]:
    rest: dict[str, Any] = {
        "grad_norm": 1.0,
        "batch_tokens": 64,
        "tokens_per_second": 32.0,
        "tflops": 0.1,
        "mfu": None,
        "mfu_causal": None,
    }
    rest |= {"noise_scale": None, "peak_memory": 3_200_000_000, **more}
    return [
        {"step": n, "tokens": 64 * n, "loss": 5 / n, "lr": 1e-4 * n, **rest}
        for n in range(1, count + 1)
    ]


def record(count: int, name: str = "run", resolved: str = RUN_TOML, **more) -> Record:
    return Record(folder=Path("runs", name), resolved=resolved, lines=lines(count), **more)


def parsed(text: str) -> ElementTree.Element:
    assert not re.search(r"https?:|src=|<script|url\(|@import", text)  # opens offline
    return ElementTree.fromstring(text.removeprefix("<!doctype html>"))


def facts(root: ElementTree.Element) -> dict[str, str]:
    return {row.findtext("dt", ""): row.findtext("dd", "") for row in root.iterfind(".//dl/div")}


def rows(root: ElementTree.Element) -> list[list[str]]:
    return [["".join(cell.itertext()).strip() for cell in row] for row in root.iterfind(".//tr")]


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
    assert root.findtext(".//details/summary") == "2 more"
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


def test_measured_metrics_are_drawn_and_others_are_shown_as_missing():
    before = run_page(record(3))
    assert facts(parsed(before))["MFU"] == "n/a"
    assert "Samples" not in before
    assert "Evaluations" not in before
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
    assert (
        known["MFU"],
        known["MFU, causal"],
        known["training loss, 3 steps"],
        known["updates skipped"],
    ) == ("40.0%", "35.0%", "n/a", "3")
    assert known["time in steps"] == "12 s"


def test_a_comparison_shows_results_differences_and_shared_charts():
    other = RUN_TOML.replace("0.5", "0.25").replace('"x"', '"y"') + "clip = 1.0\n"
    samples = [{"step": 2, "tokens": 128, "prompt": "<p>", "text": "t"}]
    runs = [record(3, "a & b", evaluations=[EVALUATION]), record(2, "c", other, samples=samples)]
    root = parsed(comparison_page(runs, Path("runs")))
    assert root.findtext("body/h1") == "2 runs"
    table = rows(root)
    assert [row[0] for row in table[1:3]] == ["a & b", "c"]
    assert table[1][1:] == ["n/a", "n/a", "3.0556", "192", "3", "1,234", "6 s"]
    assert [link.get("href") for link in root.iterfind(".//a")] == [
        "a & b/report.html",
        "c/report.html",
    ]
    # not out, and not what is the same
    assert table[3:6] == [["", "a & b", "c"], ["lr", "0.5", "0.25"], ["clip", "–", "1.0"]]
    assert ["lambada last_word, K=0: accuracy", "25.00 % ± 6.93", "–"] in table
    loss = next(
        section
        for section in root.iterfind(".//section")
        if section.findtext("h2") == "Training loss "
    )
    assert [path.get("class") for path in loss.iterfind("svg/svg/path")] == ["c0", "c1"]
    assert [quote.findtext("b") for quote in root.iterfind(".//blockquote")] == ["<p>"]


def test_runs_with_the_same_folder_name_are_named_by_their_paths():
    assert distinct_names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert distinct_names([Path("x/1/run"), Path("x/2/run")]) == ["1/run", "2/run"]


def test_a_record_has_only_the_evaluations_of_its_own_model(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(RUN_TOML)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(2)))
    for path, report in (
        # in the folder: its own in any case
        (folder / "eval.json", {**EVALUATION, "model": "/some/other/name"}),
        (tmp_path / "eval-run.json", EVALUATION),
        (tmp_path / "eval-other.json", {**EVALUATION, "model": "runs/other"}),
        (tmp_path / "my-eval.json", {"schema": "else"}),
        (tmp_path / "eval-list.json", [1]),
        (folder / "eval-odd.json", {**EVALUATION, "losses": [{"name": "x", "tokens": "many"}]}),
        (
            folder / "eval-word.json",
            {**EVALUATION, "losses": [{"name": "x", "tokens": 1, "loss": "low"}]},
        ),
        (folder / "eval-text.json", {**EVALUATION, "tasks": "none"}),
    ):
        path.write_text(json.dumps(report))
    (tmp_path / "eval-broken.json").write_text("{")
    # a byte order mark, as some editors write
    (folder / "run.toml").write_bytes(b"\xef\xbb\xbf" + (folder / "run.toml").read_bytes())
    found = read_record(folder)
    assert len(found.lines) == 2
    assert [one["model"] for one in found.evaluations] == ["/some/other/name", "elsewhere/run"]
    assert len(figures(found.evaluations)) == 8


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no such run"),
        ({"run.toml": "= 1"}, "cannot be read as a run"),
        ({"run.toml": "a = 1"}, "has no steps"),
        ({"run.toml": "a = 1", "metrics.jsonl": "{\n"}, "has no steps"),
        (
            {"run.toml": "a = 1", "metrics.jsonl": '{"step": 1}\n'},
            "metrics.jsonl:1: not the metrics of a step",
        ),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_with_the_reason(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_record(tmp_path)


def test_the_page_shows_the_provenance_of_a_run():
    head = [
        "gpt 0, python 3",
        "date: 2030-01-01T00:00:00Z",
        "host: <b>",
        "passes: 0.5",
        "resumed: 2030-02-01T00:00:00Z; host c",
    ]
    resolved = "".join(f"# {line}\n" for line in head) + "\nlr = 0.5\n"
    root = parsed(run_page(record(3, resolved=resolved)))
    known = facts(root)
    assert (known["date"], known["host"], known["passes"]) == ("2030-01-01T00:00:00Z", "<b>", "0.5")
    assert known["resumed"].endswith("host c")
    assert "How it was made" not in run_page(record(3))


def test_table_cells_carry_their_heads_for_narrow_screens():
    root = parsed(comparison_page([record(3, "a & b"), record(2, "c")], Path("runs")))
    row = root.find(".//tbody/tr")
    assert row is not None
    cells = row.findall("td")
    assert [cell.get("data-head") for cell in cells][:3] == [
        "validation loss",
        "lowest",
        "training loss",
    ]
    changed = [record(3, "a & b"), record(2, "c", RUN_TOML.replace("0.5", "0.25"))]
    heads = [
        cell.get("data-head")
        for cell in parsed(comparison_page(changed, Path("runs")))
        .findall(".//table")[-1]
        .findall(".//td")
    ]
    assert heads == ["a & b", "c"], "without their pieces of line"
