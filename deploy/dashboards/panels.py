"""Grafana's JSON: panels, template variables and whole boards.

Plain dictionaries, as in vLLM's own dashboard tool; a test holds the result to Grafana's published schema.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

Json = dict[str, Any]

GRID_WIDTH = 24
SCHEMA_VERSION = 39
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
_NO_TRAFFIC = "no traffic"


@dataclass(frozen=True)
class Query:
    """One PromQL query of a panel.

    Attributes:
        expr: the query.
        legend: legend of its series, with labels as ``{{label}}``.
        color: one of Grafana's named colours for its series; only where the legend is constant.
        instant: whether only the latest value is wanted.
        format: ``heatmap`` for buckets, ``table`` for a table's columns.
    """

    expr: str
    legend: str = "__auto"
    color: str | None = None
    instant: bool = False
    format: str = "time_series"


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    thresholds: Sequence[tuple[str, float | None]] = (),
    width: int = 4,
) -> Json:
    """One number, the latest; coloured by ``thresholds`` where it can be good or bad."""
    steps = [{"color": color, "value": value} for color, value in thresholds or [("blue", None)]]
    panel = _panel("stat", title, description, [Query(expr, instant=True)], width=width, height=4)
    panel["fieldConfig"]["defaults"] = {
        "color": {"mode": "thresholds"},
        "noValue": _NO_TRAFFIC,
        "thresholds": {"mode": "absolute", "steps": steps},
        "unit": unit,
    }
    panel["options"] = {
        "colorMode": "value" if thresholds else "none",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    return panel


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    stacked: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    width: int = 8,
) -> Json:
    """Lines over time, or areas on top of each other."""
    custom: Json = {"drawStyle": "line", "fillOpacity": 40 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"group": "A", "mode": "normal"}
    defaults: Json = {"color": {"mode": "palette-classic"}, "custom": custom}
    if minimum is not None:
        defaults["min"] = minimum
    defaults["unit"] = unit
    if maximum is not None:
        defaults["max"] = maximum
    panel = _panel("timeseries", title, description, queries, width=width, height=8)
    panel["fieldConfig"] = {
        "defaults": defaults,
        "overrides": [_colored(query.legend, query.color) for query in queries if query.color],
    }
    panel["options"] = {
        "legend": {"calcs": ["mean", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def heatmap(title: str, description: str, expr: str, *, unit: str, width: int = 8) -> Json:
    """A histogram's buckets over time."""
    panel = _panel("heatmap", title, description, [Query(expr, "{{le}}", format="heatmap")], width=width, height=8)
    panel["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"exponent": 0.5, "mode": "scheme", "scale": "exponential", "scheme": "Blues", "steps": 64},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "unit": unit},
    }
    return panel


def table(
    title: str, description: str, labels: Sequence[tuple[str, str]], columns: Sequence[tuple[str, str, str]]
) -> Json:
    """One row per combination of labels' values.

    Args:
        labels: the labels that every query is summed by, and their columns' titles.
        columns: of each further column its title, query and unit.
    """
    queries = [Query(expr, instant=True, format="table") for _, expr, _ in columns]
    panel = _panel("table", title, description, queries, width=GRID_WIDTH, height=7)
    titles = {f"Value #{ref}": name for ref, (name, _, _) in zip(ascii_uppercase, columns, strict=False)}
    renamed = {**dict(labels), **titles}
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: index for index, name in enumerate(renamed)},
                "renameByName": renamed,
            },
        },
    ]
    panel["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, _, unit in columns
    ]
    panel["options"] = {"cellHeight": "sm", "showHeader": True}
    return panel


def _colored(legend: str, color: str) -> Json:
    return {
        "matcher": {"id": "byName", "options": legend},
        "properties": [{"id": "color", "value": {"fixedColor": color, "mode": "fixed"}}],
    }


def _panel(kind: str, title: str, description: str, queries: Sequence[Query], *, width: int, height: int) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(ref, query) for ref, query in zip(ascii_uppercase, queries, strict=False)],
        "fieldConfig": {"defaults": {}, "overrides": []},
        "gridPos": {"w": width, "h": height},
    }


def _target(ref: str, query: Query) -> Json:
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": query.format,
        "instant": query.instant,
        "legendFormat": query.legend,
        "range": not query.instant,
        "refId": ref,
    }


def datasource_variable() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def label_variable(name: str, label: str, query: str) -> Json:
    """Values of a label, several or all of which can be chosen."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "current": {"text": ["All"], "value": ["$__all"]},
        "includeAll": True,
        "multi": True,
        "hide": 0,
        "refresh": 2,
        "sort": 1,
    }


def number_variable(name: str, label: str, default: str, description: str) -> Json:
    """A number that the reader types in: what only they can know."""
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "description": description,
        "query": default,
        "current": {"text": default, "value": default},
        "options": [{"selected": True, "text": default, "value": default}],
        "hide": 0,
    }


def board(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[Json]]],
    variables: Sequence[Json],
) -> Json:
    """A dashboard of titled rows, whose panels fill lines of the grid from left to right."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["dfmr"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "DFMR",
                "tags": ["dfmr"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": list(variables)},
        "panels": list(laid_out(rows)),
    }


def laid_out(rows: Sequence[tuple[str, Sequence[Json]]], *, top: int = 0, first_id: int = 1) -> Iterator[Json]:
    """Panels with ids and positions, each row under its title; ``top`` is the first free line of the grid."""
    number = first_id
    for title, panels in rows:
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": GRID_WIDTH, "h": 1},
        }
        number, top = number + 1, top + 1
        left = height = 0
        for panel in panels:
            size = panel["gridPos"]
            if left + size["w"] > GRID_WIDTH:
                left, top, height = 0, top + height, 0
            yield {**panel, "id": number, "gridPos": {"x": left, "y": top, **size}}
            number, left, height = number + 1, left + size["w"], max(height, size["h"])
        top += height
