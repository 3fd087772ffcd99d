"""Pieces of a report's page are well-formed, escaped and styled."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from gptcli.runs.page import (
    COLOR_RULES,
    DASH_RULES,
    DASHES,
    STYLE,
    definitions,
    document,
    folded,
    gallery,
    headed,
    printable,
    quote,
    table,
)
from gptcli.runs.svg import PALETTE


def test_every_color_that_the_page_uses_is_defined_for_light_and_dark() -> None:
    used = set(re.findall(r"var\((.*?)\)", STYLE + COLOR_RULES))
    themes = re.findall(r":root \{([^}]*)\}", STYLE)
    assert {f"--c{number}" for number in range(len(PALETTE))} <= used
    assert len(themes) == 2
    for theme in themes:
        defined = dict(re.findall(r"(--\w+): (#[0-9a-f]{3,6})", theme))
        assert used <= defined.keys()


def test_every_curve_has_its_own_dashes() -> None:
    assert len(set(DASHES)) == len(DASHES) == DASH_RULES.count("stroke-dasharray:")


def test_document_is_well_formed_and_escaped() -> None:
    text = document("a <b> & c", headed("Charts", gallery(["<p/>"])), subtitle="d < e\0")
    root = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
    assert root.findtext("head/title") == root.findtext("body/h1") == "a <b> & c"
    assert root.findtext("body/p") == "d < e\N{REPLACEMENT CHARACTER}"
    assert root.findtext("body/h2") == "Charts"
    assert root.find("body/main/p") is not None
    assert (
        ElementTree.fromstring(document("x").removeprefix("<!doctype html>")).find("body/p") is None
    )


def test_cells_carry_the_text_of_their_head() -> None:
    root = ElementTree.fromstring(table(["", "<i>a</i> &lt;1"], [["x", "1"], ["y", "2"]]))
    cells = root.findall(".//tbody/tr/td")
    assert [cell.get("data-head") for cell in cells] == ["a <1", "a <1"]
    assert [cell.text for cell in cells] == ["1", "2"]
    assert [cell.text for cell in root.findall(".//tbody/tr/th")] == ["x", "y"]


def test_section_without_a_body_has_no_heading() -> None:
    assert headed("Samples", "") == ""
    assert headed("A & B", "<p/>", "1 < 2") == (
        "<h2>A &amp; B <small>1 &lt; 2</small></h2>\n<p/>\n"
    )


def test_names_values_and_samples_are_escaped() -> None:
    assert "<dt>a&amp;b</dt><dd>&lt;1</dd>" in definitions({"a&b": "<1"})
    assert 'class="small"' in definitions({}, small=True)
    assert quote("<p>", "\x1b") == (
        "<blockquote><b>&lt;p&gt;</b>\N{REPLACEMENT CHARACTER}</blockquote>"
    )
    assert folded("2 & more", "<p/>").startswith("<details><summary>2 &amp; more</summary><p/>")
    assert printable("a\n\tb\r\u2028") == "a\n\tb" + 2 * "\N{REPLACEMENT CHARACTER}"
