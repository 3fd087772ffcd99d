"""HTML page of a report: one file without network access or other files.

It reads well on light and dark, wide and narrow screens, on paper, and without its script.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli.runs.svg import PALETTE, css_variables, escape

STYLE = (
    f":root {{ color-scheme: light dark; {css_variables(0)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(1)} }} }}"
    """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--back);
  max-width: 76rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; font-variant-numeric: tabular-nums
  }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h1 + p { color: var(--dim); margin: .25rem 0 0; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 0 }
body > h2 { margin: 2.25rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
small, .dim { color: var(--dim); font-weight: normal }
a { color: var(--c0) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .75rem
  1rem; margin: 1.25rem 0 0 }
dt { color: var(--dim); font-size: .85rem }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere }
dl.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); margin-top:
  .5rem }
dl.small dd { font-size: .9rem; font-weight: normal }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap:
  1.75rem 1.5rem; margin: 2rem 0 0 }
.tall { grid-column: 1 / -1 }
section svg { width: 100%; height: auto; display: block }
.key { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: 0; font-size: .85rem; color:
  var(--dim) }
svg.swatch { display: inline-block; width: 1.5rem; height: .5rem; vertical-align: middle }
svg text { fill: var(--dim); font-size: 12px }
path { fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke }
circle { stroke: none }
.grid { stroke: var(--line); stroke-width: 1 }
.raw { opacity: .35; stroke-width: 1 }
.at rect { fill: transparent }
.at g { visibility: hidden; pointer-events: none }
.at:hover g { visibility: visible }
.at path { stroke: var(--dim); stroke-width: 1 }
.at text { fill: var(--ink); font-size: 13px; paint-order: stroke; stroke: var(--back);
  stroke-width: 5px; stroke-linejoin: round }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; margin: .25rem 0 .5rem }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px
  solid var(--line) }
th { font-weight: 600 }
thead th { color: var(--dim); vertical-align: bottom }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--back); min-width:
  6.5rem; max-width: 45vw;
  white-space: normal; overflow-wrap: break-word }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr));
  gap: 1rem; align-items: start }
.texts > div { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; min-width: 0 }
.texts h3 { font-size: .85rem; margin: 0; color: var(--dim) }
blockquote { margin: .5rem 0; padding-left: .7rem; border-left: .2rem solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .9rem }
blockquote b { font-weight: normal; color: var(--dim) }
pre { overflow-x: auto; font-size: .85rem; background: var(--card); border-radius: .5rem; padding:
  .75rem .9rem }
summary { cursor: pointer; color: var(--dim); padding: .35rem 0 }
section summary { font-size: .8rem; padding: 0 }
form[hidden] { display: none }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; font-size: .85rem;
  color: var(--dim) }
#controls { position: sticky; top: 0; z-index: 2; background: var(--back); margin: 1.5rem 0 -1rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line) }
form label { display: inline-flex; gap: .4rem; align-items: center }
form output { color: var(--ink) }
#controls label output { min-width: 2.7rem }
#controls span { display: inline-flex; flex-wrap: wrap; gap: .4rem; align-items: center }
select, button { font: inherit; color: var(--ink); background: var(--card); padding: .2rem .5rem;
  border: 1px solid var(--line); border-radius: .35rem }
input { accent-color: var(--c0) }
#controls input[type=range] { width: 6rem }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px }
.key label { display: inline-flex; gap: .35rem; align-items: center; cursor: pointer }
.reader { display: block; width: 84.7%; margin: 0 4.1% 0 11.2%; height: 1rem; opacity: .45 }
.reader:hover, .reader:focus { opacity: 1 }
.select { fill: var(--c0); opacity: .15 }
.cursor { pointer-events: none }
.cursor path { stroke: var(--dim); stroke-width: 1 }
.cursor text { fill: var(--ink); font-size: 13px; paint-order: stroke; stroke: var(--back);
  stroke-width: 5px; stroke-linejoin: round }
#compare { margin: 0 0 .5rem }
.choose { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: 0 0 .75rem }
#compare .texts { color: var(--ink); font-size: 1rem }
ins { color: var(--c2); text-decoration: underline }
del { color: var(--c1) }
@media (max-width: 40rem) {
  svg text, .at text, .cursor text { font-size: 19px }
  #controls { position: static }
  #controls label { flex: 1 1 45%; flex-wrap: wrap }
  table, tbody, tr, th, td { display: block }
  thead { display: none }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line) }
  th, td { border: none; padding: 0; white-space: normal }
  th:first-child { position: static; max-width: none }
  td { display: flex; justify-content: space-between; gap: 1rem; overflow-wrap: anywhere }
  td::before { content: attr(data-head); color: var(--dim); text-align: left }
}
@media (min-width: 62rem) { .tall svg text { font-size: 7.5px } .tall .at text, .tall .cursor
  text { font-size: 8.5px; stroke-width: 3px } }
@media print { section, .texts > div { break-inside: avoid }
  form, .reader, section details { display: none } }
"""
)
COLOR_RULES = "".join(
    f"path.c{number}{{stroke:var(--c{number})}}"
    f"g.c{number},circle.c{number},svg tspan.t{number}{{fill:var(--c{number})}}\n"
    for number in range(len(PALETTE))
)
DASHES = ("none", "8 3", "3 3", "12 3 3 3", "5 2", "2 2", "12 3", "1 3")
# lines of compared runs differ in dashes as well as in color
DASH_RULES = "".join(
    f"main.runs path.c{number}:not(.raw),table path.c{number},h3 path.c{number}"
    f"{{stroke-dasharray:{dashes}}}\n"
    for number, dashes in enumerate(DASHES)
)


# read at once, because an upgrade may replace the package while a run goes on
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
# no network, even if a name or a text of the run held markup that was not escaped
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
CONTROLS = """\
<form id="controls" aria-label="Charts" hidden="hidden">
<span><label>Horizontal axis <select name="axis"><option value="tokens">tokens</option>
<option value="step">steps</option><option value="seconds">time in steps</option></select></label>
<label><input type="checkbox" name="logx" aria-label="logarithmic horizontal axis"/> logarithmic</label>
</span>
<label>Vertical axis <select name="logy"><option value="auto">automatic</option>
<option value="off">linear</option><option value="on">logarithmic</option></select></label>
<label>Smoothing <input type="range" name="smooth" min="0" max="10" step="0.5" value="2.5"/>
<output name="smoothed"></output></label>
<span><label>From <input type="range" name="from" min="0" max="99" value="0"/></label>
<label>to <input type="range" name="to" min="1" max="100" value="100"/></label>
<output name="part"></output></span>
<button type="button" name="whole">Whole run</button>
<small>or drag over a chart; a double click shows the whole run</small>
</form>
"""
COMPARE = """\
<form id="compare" hidden="hidden"><details><summary>Difference of two samples</summary>
<div class="choose"><label>From <select name="first"></select></label>
<label>to <select name="second"></select></label>
<small>words only in the first are <del>struck out</del>, those only in the second
<ins>underlined</ins></small></div>
<div class="texts" aria-live="polite"></div>
</details></form>
"""


def document(title: str, *parts: str, subtitle: str = "") -> str:
    """Return the page; `parts` are markup."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    below = f"<p>{printable(subtitle)}</p>" if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f"{policy}\n{viewport}\n<title>{printable(title)}</title>\n"
        f"<style>{STYLE}{COLOR_RULES}{DASH_RULES}</style>\n</head>\n<body>\n"
        f"<h1>{printable(title)}</h1>\n{below}\n{''.join(parts)}</body>\n</html>\n"
    )


def definitions(
    facts: Mapping[str, str], *, titles: Mapping[str, str] | None = None, small: bool = False
) -> str:
    """Return a list of names and values; `titles` explains names to who points at them, and `small`
    is for values that are text rather than numbers.
    """
    rows = []
    for name, value in facts.items():
        about = f' title="{escape(titles[name])}"' if titles and name in titles else ""
        rows.append(f"<div{about}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>")
    kind = ' class="small"' if small else ""
    return f"<dl{kind}>{''.join(rows)}</dl>\n"


def gallery(charts: Iterable[str], *, dashed: bool = False) -> str:
    """Return charts in columns; `dashed` gives each curve of a chart dashes of its own."""
    kind = ' class="runs"' if dashed else ""
    return f"<main{kind}>\n{''.join(charts)}</main>\n"


def script(data: Mapping[str, Any]) -> str:
    """Return the data of the charts, and the script that draws them anew for `CONTROLS`.

    Both are parts of an HTML page and of well-formed XML.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return (
        f'<script id="data" type="application/json">{text}</script>\n'
        f"<script>//<![CDATA[\n{SCRIPT}//]]></script>\n"
    )


def configuration(text: str) -> str:
    """Return the text of a run.toml, folded."""
    return folded("Configuration", f'<pre tabindex="0">{printable(text)}</pre>')


def headed(title: str, body: str, note: str = "") -> str:
    """Return a section under a heading; nothing if `body` is empty."""
    if not body:
        return ""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<h2>{escape(title)}{small}</h2>\n{body}\n"


def folded(summary: str, body: str) -> str:
    """Return markup that opens when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are markup.

    On a narrow screen each row becomes a list of cells, each behind its column's head.
    """
    labels = [escape(re.sub("<.*?>", "", html.unescape(cell)).strip()) for cell in heads[1:]]
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = ""
    for first, *rest in rows:
        cells = zip(labels, rest, strict=True)
        data = "".join(f'<td data-head="{label}">{cell}</td>' for label, cell in cells)
        body += f'<tr><th scope="row">{first}</th>{data}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def quote(prompt: str, text: str) -> str:
    """Return a sample, its prompt in grey."""
    return f"<blockquote><b>{printable(prompt)}</b>{printable(text)}</blockquote>"


def printable(text: str) -> str:
    """Escape text, and replace the control characters that are not allowed in a page."""
    return escape(
        "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )
