"""Two figures as inline SVG, drawn without a plotting library, which a server's image does not have."""

from collections.abc import Sequence
from html import escape

from server.report.numbers import short
from server.report.usage import Point

_INK, _SOFT, _LINE, _SAVED, _KEPT = "#1f2933", "#52606d", "#e4e7eb", "#bcdff5", "#0b69a3"
_WIDTH, _LEFT = 860, 240


def tokens_over_time(points: Sequence[Point], label: str) -> str:
    """Visual tokens of the encoder as an area, those kept as an area in front of it; "" with fewer than two points.

    Args:
        points: in the order of time.
        label: for readers who do not see it.
    """
    top = max((p.original for p in points), default=0.0)
    if len(points) < 2 or top <= 0:
        return ""
    height, left, right, above, below = 240, 70, 10, 14, 26
    begin, end = points[0].time, points[-1].time
    wide, high = _WIDTH - left - right, height - above - below

    def x(time: float) -> float:
        return left + wide * (time - begin) / (end - begin)

    def y(value: float) -> float:
        return above + high * (1 - value / top)

    def area(values: Sequence[float], color: str) -> str:
        line = " ".join(f"{x(p.time):.1f},{y(v):.1f}" for p, v in zip(points, values, strict=True))
        floor = y(0)
        return f'<polygon points="{left},{floor:.1f} {line} {x(end):.1f},{floor:.1f}" fill="{color}"/>'

    grid = [
        f'<line x1="{left}" x2="{_WIDTH - right}" y1="{y(top * part):.1f}" y2="{y(top * part):.1f}" stroke="{_LINE}"/>'
        + _text(left - 8, y(top * part) + 4, short(top * part), anchor="end")
        for part in (0, 0.5, 1)
    ]
    span = end - begin
    ticks = [
        _text(x(begin + span * part), height - 8, _ago(span * (1 - part)), anchor=anchor)
        for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    body = [*grid, area([p.original for p in points], _SAVED), area([p.kept for p in points], _KEPT), *ticks]
    return _picture(height, label, body) + _legend((("made by the encoder", _SAVED), ("kept", _KEPT)))


def bars(rows: Sequence[tuple[str, float, float]], unit: str, label: str, names: tuple[str, str]) -> str:
    """For each row two bars, one below the other: the larger amount, and what of it is left.

    Args:
        rows: name, amount before, amount after.
        unit: of the amounts.
        label: for readers who do not see it.
        names: of the two bars, for the legend.
    """
    top = max((max(before, after) for _, before, after in rows), default=0.0)
    if top <= 0:
        return ""
    wide = _WIDTH - _LEFT - 130
    body = []
    for index, (name, before, after) in enumerate(rows):
        y = 6 + index * 46
        body.append(_text(_LEFT - 10, y + 22, name if len(name) < 38 else name[:36] + "\u2026", anchor="end"))
        for offset, value, color in ((0, before, _SAVED), (18, after, _KEPT)):
            length = wide * max(value, 0.0) / top
            body.append(f'<rect x="{_LEFT}" y="{y + offset}" width="{length:.1f}" height="15" rx="2" fill="{color}"/>')
            body.append(_text(_LEFT + length + 6, y + offset + 12, f"{short(value)} {unit}"))
    return _picture(10 + 46 * len(rows), label, body) + _legend(tuple(zip(names, (_SAVED, _KEPT), strict=True)))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_SOFT}">{escape(text)}</text>'


def _picture(height: int, label: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{escape(label, quote=True)}" '
        f'font-size="12" font-family="inherit">{"".join(body)}</svg>'
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    square = '<svg width="11" height="11"><rect width="11" height="11" rx="2" fill="{}"/></svg>'
    marks = (f"<span>{square.format(color)} {escape(name)}</span>" for name, color in entries)
    return f'<div class="facts">{"".join(marks)}</div>'


def _ago(seconds: float) -> str:
    if seconds < 1:
        return "end"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} before"
    return f"{seconds:.0f} s before"
