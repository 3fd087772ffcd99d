"""Pages of one run and of several are complete, escaped and self-contained."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gptcli.runs.record import Record
from gptcli.runs.report import comparison_page, run_page
from tests.runs.example_run import EVALUATION, RUN_TOML, lines


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
