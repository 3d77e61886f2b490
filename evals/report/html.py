"""Estimates as cells of a page; the frame, tables and plain numbers are those of `server.report.html`."""

from evals.bootstrap import Estimate
from server.report.html import number, page, percent, table

__all__ = ["interval", "number", "page", "percent", "points", "signed", "table", "verdict"]


def interval(estimate: Estimate | None) -> str:
    """An accuracy with its interval."""
    if estimate is None:
        return "&ndash;"
    return f"{percent(estimate.value)} <small>{100 * estimate.low:.1f} to {100 * estimate.high:.1f}</small>"


def points(estimate: Estimate | None) -> str:
    """A difference in percentage points with its interval, coloured where the interval is clear of zero."""
    if estimate is None:
        return "&ndash;"
    value = f"{signed(estimate.value)} <small>{signed(estimate.low)} to {signed(estimate.high)}</small>"
    return f'<span class="{verdict(estimate)}">{value}</span>'


def signed(value: float) -> str:
    """A difference of shares in percentage points, with a sign."""
    return f"{100 * value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "&minus;")


def verdict(estimate: Estimate) -> str:
    """``good`` or ``bad`` where the interval is clear of zero, else nothing."""
    return "good" if estimate.low > 0 else "bad" if estimate.high < 0 else ""
