"""The report as Markdown and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

from server.report.costs import Figure, Report
from server.report.numbers import shown

KINDS = (
    "Measured: counted by the server. Derived: computed from measured numbers and prices by the formula beside it. "
    "Assumed: rests on a number other than the price that was given, not measured."
)


def when(seconds: float) -> str:
    """A time as people write it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def scope(report: Report) -> str:
    """Source and time range in one line."""
    usage = report.usage
    return f"{usage.source}; {when(usage.start)} to {when(usage.end)}, {usage.hours:.3g} h"


def title(model: str, profile: str) -> str:
    """Heading of a section."""
    return f"{model}, profile {profile}"


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [
        "# What visual-token compression saved",
        "",
        f"{scope(report)}.",
        "",
        KINDS,
        "",
        "## Cost of ownership",
        "",
    ]
    parts += _table(report.ownership)
    for section in report.sections:
        parts += ["", f"## {title(section.model, section.profile)}", "", *_table(section.figures)]
    return "\n".join(parts) + "\n"


def _table(figures: Iterable[Figure]) -> list[str]:
    rows = ["| | value | how known | formula | assumptions |", "|---|---:|---|---|---|"]
    for f in figures:
        cells = (f.name, shown(f.value, f.unit), f.kind, f.formula, f.note)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def as_json(report: Report) -> str:
    """Everything, for other programs; a value that is not known is null."""
    usage = report.usage
    return json.dumps(
        {
            "source": usage.source,
            "start": usage.start,
            "end": usage.end,
            "assumptions": asdict(report.assumptions),
            "ownership": [asdict(figure) for figure in report.ownership],
            "sections": [asdict(section) for section in report.sections],
            "timeline": [asdict(point) for point in usage.timeline],
        },
        indent=2,
    )
