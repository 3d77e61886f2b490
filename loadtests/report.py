"""The page of a run: targets, plots, every cell, and the chain of phase one."""

from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from evals.report import html
from evals.report.plot import COLORS, STYLE, svg
from loadtests.results import Cell, Results

_COLORS = {
    "one-phase": COLORS["full"],
    "uncompressed": "#7b8794",
    "fixed": COLORS["fixed"],
    "dfmr": COLORS["dfmr"],
    "downscaled": COLORS["downscaled"],
    "text-only": COLORS["drop-cls"],
    "lowest": "#486581",
}
_SHORTEST_GAP_MS = 0.1
_GAPS = (
    "Gaps between the tokens of text answers (p50, p95, p99), logarithmic. "
    f"Tokens that came together are drawn at {_SHORTEST_GAP_MS} ms."
)
_MARKERS = {"one-phase": "s", "dfmr": "o"}


def render(results: Results) -> str:
    """The page as HTML."""
    run = results.run
    parts = [f"<h1>What DFMR buys: {escape(str(run['model']))} bench model</h1>", _facts(results)]
    parts += ["<h2>Targets</h2>", _targets(results)]
    parts.append(
        '<p class="note">Ratios are medians over rounds; within a round the policies took turns on servers that were '
        "up at the same time. The model answers with noise: its weights are random, its shapes are not.</p>"
    )
    if bars := _bars(results, "four pictures", "four pictures, saturated"):
        parts += [
            "<h2>Four pictures a request</h2>",
            _figure(bars, "Left: one request at a time, p50 with p95 as whisker. Right: four at a time."),
        ]
    if curve := _curve(results, "rising load"):
        parts += ["<h2>Rising load</h2>", _figure(curve, _slo(results))]
    if gaps := _gaps(results, "running answers under picture load"):
        parts += [
            "<h2>Running answers while pictures arrive</h2>",
            _figure(gaps, _GAPS),
        ]
    if results.chain:
        parts += ["<h2>Phase one, link by link</h2>", _chain(results)]
    if results.context or results.memory:
        parts += ["<h2>Context and memory</h2>", _rest(results)]
    parts += ["<h2>Every cell</h2>", _cells(results.cells)]
    return html.page("Load tests", parts)


def _facts(results: Results) -> str:
    run = results.run
    shown = {
        "what it stands for": run.get("model_note"),
        "encoding : prefill": f"{run.get('encoder_share', 0):.1%}",
        "run": run.get("size"),
        "cores": run.get("cores"),
        "machine load before": run.get("load_before"),
        "started": run.get("started"),
        "minutes": run.get("minutes"),
        "resumed, times": run.get("resumed") or None,
    }
    facts = (f"<span>{escape(k)} <b>{escape(str(v))}</b></span>" for k, v in shown.items() if v is not None)
    return f'<div class="facts">{"".join(facts)}</div>'


def _targets(results: Results) -> str:
    rows = []
    for target in results.targets:
        mark = '<span class="good">pass</span>' if target.passed else '<span class="bad">short</span>'
        measured = "not measured" if target.measured is None else f"{target.measured:g}"
        rows.append([escape(target.name), escape(target.target), measured, mark])
    return html.table(["", "target", "measured", ""], rows)


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _slo(results: Results) -> str:
    if results.slo is None:
        return ""
    return (
        f"Poisson arrivals. The SLO of goodput: first token within {results.slo.ttft:.2f} s (twice what idle one-phase "
        f"vLLM takes) and {1000 * results.slo.tpot:.0f} ms for each further token."
    )


def _bars(results: Results, idle: str, busy: str) -> str:
    alone = [c for c in results.cells if c.scenario == idle and c.ttft.p50 is not None]
    loaded = [c for c in results.cells if c.scenario == busy]
    if not alone or not loaded:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _horizontal(left, alone, [1000 * (c.ttft.p50 or 0) for c in alone], "time to first token, ms")
        for index, found in enumerate(alone):
            left.plot(
                [1000 * (found.ttft.p50 or 0), 1000 * (found.ttft.p95 or 0)], [index, index], color="#1f2933", lw=1
            )
        _horizontal(right, loaded, [c.images_per_second for c in loaded], "pictures a second")
        return svg(figure)


def _horizontal(axes: Axes, cells: Sequence[Cell], values: Sequence[float], label: str) -> None:
    axes.barh(range(len(cells)), values, color=[_COLORS.get(c.policy, "#3e4c59") for c in cells], height=0.6)
    axes.set_yticks(range(len(cells)), [c.policy for c in cells])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel(label)


def _curve(results: Results, scenario: str) -> str:
    cells = [c for c in results.cells if c.scenario == scenario and c.rate is not None]
    if not cells:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        latency, throughput, good = figure.subplots(1, 3)
        for policy in dict.fromkeys(c.policy for c in cells):
            line = sorted((c for c in cells if c.policy == policy), key=lambda c: c.rate or 0)
            style = {"color": _COLORS.get(policy, "#3e4c59"), "marker": _MARKERS.get(policy, "^"), "label": policy}
            arrivals = [c.rate or 0 for c in line]
            latency.plot([c.requests_per_second for c in line], [c.ttft.p50 or 0 for c in line], **style)
            throughput.plot(arrivals, [c.requests_per_second for c in line], **style)
            good.plot(arrivals, [c.goodput or 0 for c in line], **style)
        _label(latency, "requests/s served", "TTFT p50, s")
        _label(throughput, "requests/s arriving", "requests/s served")
        _label(good, "requests/s arriving", "goodput, requests/s")
        latency.legend(frameon=False)
        return svg(figure)


def _label(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _gaps(results: Results, scenario: str) -> str:
    cells = [c for c in results.cells if c.scenario == scenario and c.itl.p50 is not None]
    if not cells:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.4), layout="constrained")
        axes = figure.subplots()
        for index, found in enumerate(cells):
            points = [max(_SHORTEST_GAP_MS, 1000 * (v or 0)) for v in (found.itl.p50, found.itl.p95, found.itl.p99)]
            axes.plot(points, [index] * 3, color=_COLORS.get(found.policy, "#3e4c59"), marker="o", lw=1.5)
        axes.set_yticks(range(len(cells)), [c.policy for c in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("ms between tokens")
        return svg(figure)


def _chain(results: Results) -> str:
    total = sum(step.seconds for step in results.chain)
    rows = []
    for step in results.chain:
        name = f"{escape(step.name)}<br><small>{escape(step.source)}</small>"
        share = f"{step.seconds / total:.1%}" if total else "&ndash;"
        rows.append([name, f"{1000 * step.seconds:.2f}", share, f'<td class="left">{escape(step.where)}</td>'])
    rows.append(["<b>all</b>", f"<b>{1000 * total:.2f}</b>", "", ""])
    return html.table(["one photograph of 640 x 480", "ms", "share", '<th class="left">where</th>'], rows)


def _rest(results: Results) -> str:
    rows = [[f"pictures that fit into a context of 4096, {escape(k)}", str(v)] for k, v in results.context.items()]
    for name, value in results.memory.items():
        shown = f"{value / 1e6:.0f} MB" if name.startswith("rss_") and name != "rss_growth" else f"{value:.4g}"
        rows.append([escape(name.replace("_", " ")), shown])
    return html.table(["", "measured"], rows)


def _cells(cells: Sequence[Cell]) -> str:
    head = ["scenario", '<th class="left">policy</th>', "requests", "failed", "prompt<br>tokens", "kept"]
    head += ["TTFT, ms<br>p50 / p95 / p99"]
    head += ["ITL, ms<br>p50 / p95 / p99", "E2E, ms<br>p50 / p95 / p99", "requests/s", "goodput", "pictures/s"]
    head += ["KV blocks", "cache hits", "prefix hits"]
    rows = []
    for c in cells:
        name = f"{escape(c.scenario)} <small>{escape(c.variant)}</small>"
        spreads = (
            " / ".join(html.number(v and 1000 * v, 0 if i != 1 else 1) for v in (p.p50, p.p95, p.p99))
            for i, p in enumerate((c.ttft, c.itl, c.e2e))
        )
        failed = f'<span class="bad">{c.failed}</span>' if c.failed else "0"
        row = [name, f'<td class="left">{escape(c.policy)}</td>', str(c.requests), failed]
        row += [html.number(c.prompt_tokens, 0), html.percent(c.kept, 0), *spreads]
        row += [html.number(c.requests_per_second, 2), html.number(c.goodput, 2), html.number(c.images_per_second, 2)]
        row += [html.number(c.kv_blocks, 0), html.percent(c.cache_hits, 0), html.percent(c.prefix_hits, 0)]
        rows.append(row)
    return html.table(head, rows)
