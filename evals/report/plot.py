"""Figures as inline SVG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from evals.results import PolicyResult, Results

COLORS = {
    "full": "#1f2933",
    "dfmr": "#0b69a3",
    "fixed": "#de911d",
    "random": "#7b8794",
    "downscaled": "#8719e0",
    "drop-cls": "#27ab83",
    "drop-random": "#cf1124",
}
_MARKERS = {"dfmr": "o", "fixed": "s", "random": "D", "downscaled": "v", "drop-cls": "^", "drop-random": "X"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evals",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
}


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def quality_against_tokens(results: Results) -> str:
    """Accuracy over mean visual tokens, a line for each family of policies, with 95 % intervals; "" without tokens."""
    measured = [p for p in results.policies if p.accuracy is not None and p.visual_tokens is not None]
    if not measured:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6))
        axes = figure.subplots()
        full = results.policy("full")
        if full is not None and full.accuracy is not None:
            axes.axhline(full.accuracy.value, color=COLORS["full"], linewidth=1, linestyle=(0, (4, 3)))
            axes.axhspan(full.accuracy.low, full.accuracy.high, color=COLORS["full"], alpha=0.05, linewidth=0)
        families = list(dict.fromkeys(p.family for p in measured))
        for rank, family in enumerate(families):
            members = [p for p in measured if p.family == family]
            # Matched controls have the same tokens: a slight shift keeps their intervals apart.
            shift = 1 + 0.012 * (rank - (len(families) - 1) / 2)
            _family(axes, family, sorted(members, key=lambda p: p.visual_tokens or 0), shift)
        estimates = [p.accuracy for p in measured if p.accuracy is not None]
        axes.set_ylim(
            max(-0.01, min(e.low for e in estimates) - 0.04), min(1.01, max(e.high for e in estimates) + 0.04)
        )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        tokens = sorted({round(p.visual_tokens or 0) for p in measured})
        axes.set_xticks([t for i, t in enumerate(tokens) if i == 0 or t > tokens[i - 1] * 1.06])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("visual tokens kept per picture, mean (logarithmic)")
        axes.set_ylabel("accuracy")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return svg(figure)


def _family(axes: Axes, family: str, members: Sequence[PolicyResult], shift: float) -> None:
    x = [(p.visual_tokens or 0) * shift for p in members]
    estimates = [p.accuracy for p in members if p.accuracy is not None]
    y = [e.value for e in estimates]
    errors = [[max(0.0, e.value - e.low) for e in estimates], [max(0.0, e.high - e.value) for e in estimates]]
    axes.errorbar(
        x,
        y,
        yerr=errors,
        label=family,
        color=COLORS.get(family, "#3e4c59"),
        marker=_MARKERS.get(family, "*"),
        markersize=8 if family == "dfmr" else 6,
        linewidth=2 if family == "dfmr" else 1.2,
        elinewidth=1,
        capsize=2,
        zorder=3 if family == "dfmr" else 2,
    )


def small_multiples(
    panels: dict[str, dict[str, list[tuple[float, float]]]], ylabel: str, percent: bool, colors: dict[str, str]
) -> str:
    """One panel for each condition, one line for each policy, over strengths from clean to severe.

    Args:
        panels: condition to policy to (amount, value), the clean picture first.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns, 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (condition, lines) in zip(grid.flat, panels.items(), strict=False):
            for policy, points in lines.items():
                axes.plot(
                    range(len(points)),
                    [value for _, value in points],
                    marker="o",
                    ms=4,
                    color=colors[policy],
                    label=policy,
                )
            amounts = [amount for amount, _ in next(iter(lines.values()))]
            axes.set_xticks(range(len(amounts)), ["clean", *(f"{amount:g}" for amount in amounts[1:])], fontsize=9)
            axes.set_title(condition, fontsize=11)
            if percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        grid[0][0].set_ylabel(ylabel)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        return svg(figure)
