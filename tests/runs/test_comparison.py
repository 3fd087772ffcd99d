"""A page of several runs is complete, and says what differs."""

from __future__ import annotations

from pathlib import Path

from gptcli.runs.comparison import MAX_COLUMNS, comparison_page
from tests.runs.example_run import EVALUATION, RUN_TOML, parsed, record, rows


def test_a_comparison_shows_results_differences_and_shared_charts():
    other = RUN_TOML.replace("0.5", "0.25").replace('"x"', '"y"') + "clip = 1.0\n"
    samples = [{"step": 2, "tokens": 128, "prompt": "<p>", "text": "t"}]
    runs = [record(3, "a & b", evaluations=[EVALUATION]), record(2, "c", other, samples=samples)]
    root = parsed(comparison_page(runs, Path("runs")))
    assert root.findtext("body/h1") == "2 runs"
    table = rows(root)
    assert [row[0] for row in table[1:3]] == ["a & b", "c"]
    # what differs first: not out, and not what is the same
    assert table[0][:4] == ["run", "lr", "clip", "validation loss"]
    assert table[0][6] == "tokens trained"
    assert table[1][1:] == ["0.5", "–", "n/a", "n/a", "3.0556", "192", "3", "1,234", "6 s"]
    assert table[2][1:3] == ["0.25", "1.0"]
    assert [link.get("href") for link in root.iterfind(".//a")] == [
        "a & b/report.html",
        "c/report.html",
    ]
    assert ["lambada last_word, K=0: accuracy", "25.00 % ± 6.93", "–"] in table
    loss = next(
        section
        for section in root.iterfind(".//section")
        if section.findtext("h2") == "Training loss "
    )
    assert [path.get("class") for path in loss.iterfind("svg/svg/path")] == ["c0", "c1"]
    assert [quote.findtext("b") for quote in root.iterfind(".//blockquote")] == ["<p>"]


def test_a_comparison_has_one_name_for_each_count_of_tokens_and_names_runs_without_a_curve():
    """Also where what was planned differs, and where only some runs have measured something."""
    longer = RUN_TOML.replace("64000", "128000")
    runs = [record(3, "a <b>"), record(3, "b", longer), record(3, "c"), record(3, "d")]
    runs[1].lines[-1]["val_loss"] = runs[2].lines[-1]["val_loss"] = 4.0
    for some, says in ((runs[:3], "in a <b>"), (runs, "in a <b> and d")):
        root = parsed(comparison_page(some, Path("runs")))
        heads = rows(root)[0]
        assert (heads.count("tokens planned"), heads.count("tokens trained")) == (1, 1)
        assert len({*heads}) == len(heads)
        loss = root.find(".//section/h2")
        assert loss is not None
        assert "".join(loss.itertext()) == f"Validation loss nats per token, not measured {says}"
    many = [record(3, "e"), *(runs[2:3]), *(record(3, name) for name in "fg")]
    assert "not measured in 3 of 4 runs" in comparison_page(many, Path("runs"))


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
    many = "".join(f"setting{number} = 1  # option\n" for number in range(MAX_COLUMNS + 1))
    changed = [record(3, "a & b"), record(2, "c", RUN_TOML + many + "derived = 2  # auto\n")]
    page = parsed(comparison_page(changed, Path("runs")))
    chosen = page.findall("body/div[@class='scroll']/table")[1]
    assert [cell.get("data-head") for cell in chosen.findall(".//td")] == ["a & b", "c"] * 6, (
        "without their pieces of line"
    )
    assert page.findtext("body/details/summary", "").startswith("1 more settings that differ")
