"""Pieces of a page that refers to nothing outside itself: its frame, tables and numbers."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { --ink:#1f2933; --soft:#52606d; --line:#e4e7eb; --ground:#fff; --good:#0e7c4a; --bad:#b0301f; --accent:#0b69a3 }
* { box-sizing:border-box }
body { margin:0 auto; padding:2.5rem 1.5rem 5rem; max-width:1240px; color:var(--ink); background:var(--ground);
  font:15px/1.5 system-ui,"Segoe UI","Helvetica Neue",Arial,sans-serif }
h3 { font-size:1rem; margin:1.4rem 0 .2rem }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .3rem } h2 { font-size:1.2rem; margin:2.6rem 0 .4rem }
p { margin:.3rem 0 .8rem; max-width:46rem } .note, figcaption { color:var(--soft) }
svg { max-width:100%; height:auto } figure { margin:1rem 0 }
.scroll { overflow-x:auto } table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.92rem }
th, td { padding:.34rem .7rem; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th { font-weight:600; color:var(--soft); vertical-align:bottom } th:first-child, td:first-child { text-align:left }
tbody tr:hover { background:#f5f7fa } td.left, th.left { text-align:left }
td.wrap { white-space:normal; min-width:11rem; max-width:34rem }
th:first-child, td:first-child { position:sticky; left:0; background:var(--ground) }
small { color:var(--soft); font-size:.85em } .good { color:var(--good) } .bad { color:var(--bad) }
td.sure { font-weight:650 }
.facts { display:flex; flex-wrap:wrap; gap:.3rem 1.6rem; color:var(--soft); margin:.4rem 0 1.2rem }
.facts b { color:var(--ink); font-weight:600 }
.cases { display:grid; grid-template-columns:repeat(auto-fill,minmax(250px,1fr)); gap:1.2rem; margin:1rem 0 2rem }
.case { border:1px solid var(--line); border-radius:8px; overflow:hidden; display:flex; flex-direction:column }
.case .pictures { display:flex; background:#f5f7fa } .case img { display:block; width:100%; min-width:0; flex:1 1 0 }
.case .text { padding:.7rem .85rem .9rem }
.case dl { display:grid; grid-template-columns:auto 1fr; gap:.1rem .7rem; margin:.5rem 0 0 }
.case dt { color:var(--soft) } .case dd { margin:0; overflow-wrap:anywhere }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document that refers to nothing outside itself."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready cells: each is text that is already HTML, or a whole ``<th>`` or ``<td>``."""
    top = "".join(cell if cell.startswith("<th") else f"<th>{cell}</th>" for cell in head)
    lines = []
    for row in rows:
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent, or a dash."""
    return "&ndash;" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash."""
    return "&ndash;" if value is None else f"{value:.{digits}f}"
