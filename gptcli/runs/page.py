"""HTML page of a report: one file without scripts, network access or other files.

It reads well on light and dark, wide and narrow screens, and on paper.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

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
@media (max-width: 40rem) {
  svg text, .at text { font-size: 19px }
  table, tbody, tr, th, td { display: block }
  thead { display: none }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line) }
  th, td { border: none; padding: 0; white-space: normal }
  th:first-child { position: static; max-width: none }
  td { display: flex; justify-content: space-between; gap: 1rem; overflow-wrap: anywhere }
  td::before { content: attr(data-head); color: var(--dim); text-align: left }
}
@media (min-width: 62rem) { .tall svg text { font-size: 7.5px } .tall .at text { font-size: 8.5px;
  stroke-width: 3px } }
@media print { section, .texts > div { break-inside: avoid } }
"""
)
COLOR_RULES = "".join(
    f"path.c{number}{{stroke:var(--c{number})}}"
    f"g.c{number},circle.c{number},.at tspan.t{number}{{fill:var(--c{number})}}\n"
    for number in range(len(PALETTE))
)
DASHES = ("none", "8 3", "3 3", "12 3 3 3", "5 2", "2 2", "12 3", "1 3")
# lines of compared runs differ in dashes as well as in color
DASH_RULES = "".join(
    f"main.runs path.c{number},table path.c{number},h3 path.c{number}"
    f"{{stroke-dasharray:{dashes}}}\n"
    for number, dashes in enumerate(DASHES)
)


def document(title: str, *parts: str, subtitle: str = "") -> str:
    """Return the page; `parts` are markup."""
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    below = f"<p>{printable(subtitle)}</p>" if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f"{viewport}\n<title>{printable(title)}</title>\n"
        f"<style>{STYLE}{COLOR_RULES}{DASH_RULES}</style>\n</head>\n<body>\n"
        f"<h1>{printable(title)}</h1>\n{below}\n{''.join(parts)}</body>\n</html>\n"
    )


def definitions(facts: dict[str, str], *, small: bool = False) -> str:
    """Return a list of names and values; `small` for values that are text rather than numbers."""
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    kind = ' class="small"' if small else ""
    return f"<dl{kind}>{''.join(rows)}</dl>\n"


def gallery(charts: Iterable[str], *, dashed: bool = False) -> str:
    """Return charts in columns; `dashed` gives each curve of a chart dashes of its own."""
    kind = ' class="runs"' if dashed else ""
    return f"<main{kind}>\n{''.join(charts)}</main>\n"


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
