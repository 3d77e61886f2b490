"""The report as one HTML page that refers to nothing outside itself."""

from collections.abc import Iterable
from html import escape

from server.report import html
from server.report.costs import AFTER, BEFORE, Figure, Report
from server.report.numbers import shown
from server.report.svg import bars, tokens_over_time
from server.report.text import KINDS, scope, title


def render(report: Report) -> str:
    """The page."""
    heading = "What visual-token compression saved"
    body = [f"<h1>{heading}</h1>", f'<p class="note">{escape(scope(report))}</p>', f'<p class="note">{KINDS}</p>']
    body += ["<h2>Cost of ownership</h2>", _costs(report), _table(report.ownership)]
    over_time = tokens_over_time(report.usage.timeline, "visual tokens over time, made by the encoder and kept")
    if over_time:
        body += [
            "<h2>Visual tokens over time</h2>",
            f"<figure>{over_time}<figcaption>All models and profiles, in equal intervals. Measured."
            "</figcaption></figure>",
        ]
    if rows := [(title(g.model, g.profile), g.original, g.kept) for g in report.usage.groups if g.original]:
        compared = bars(rows, "tokens", "visual tokens by model and profile", ("made by the encoder", "kept"))
        body += ["<h2>By model and profile</h2>", f"<figure>{compared}<figcaption>Measured.</figcaption></figure>"]
    for section in report.sections:
        body += [f"<h3>{escape(title(section.model, section.profile))}</h3>", _table(section.figures)]
    return html.page(heading, body)


def _costs(report: Report) -> str:
    figures = {figure.name: figure for figure in report.ownership}
    before, after = figures[BEFORE], figures[AFTER]
    if before.value is None or after.value is None:
        return ""
    unit = report.assumptions.currency
    drawn = bars(
        [("total", before.value, after.value)],
        unit,
        f"cost without compression {shown(before.value, unit)}, with compression {shown(after.value, unit)}",
        ("without compression", "with compression"),
    )
    return f"<figure>{drawn}<figcaption>{before.kind.capitalize()}; formulas below.</figcaption></figure>"


def _table(figures: Iterable[Figure]) -> str:
    rows = [
        [
            escape(f.name),
            f"<td><b>{escape(shown(f.value, f.unit))}</b></td>",
            f'<td class="left">{f.kind}</td>',
            f'<td class="left wrap">{escape(f.formula)}</td>',
            f'<td class="left wrap"><small>{escape(f.note)}</small></td>',
        ]
        for f in figures
    ]
    words = [f'<th class="left">{word}</th>' for word in ("how known", "formula", "assumptions")]
    return html.table(["", "value", *words], rows)
