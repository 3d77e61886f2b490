"""Holds boards and rules to the server: every query parses and names metrics that exist."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from deploy.catalogue import known_samples
from deploy.dashboards.panels import Json
from deploy.promql import problems, substituted

_GRAFANA = {"__rate_interval": "5m", "__range": "1h"}


def queries(board: Json) -> Iterator[tuple[str, str]]:
    """Title and query of every target of a board, with example values in place of its variables."""
    values = example_values(board)
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], substituted(target["expr"], values)


def example_values(board: Json) -> dict[str, str]:
    """A value for each variable that a query of the board may use: all labels, and the default of each number."""
    values = dict(_GRAFANA)
    for variable in board["templating"]["list"]:
        values[variable["name"]] = variable["query"] if variable["type"] == "textbox" else ".*"
    return values


def board_problems(board: Json) -> Iterator[str]:
    """What is wrong with a board's queries."""
    for title, query in queries(board):
        for problem in problems(query, _known()):
            yield f"{title}: {problem}\n  {query}"


def rule_problems(text: str) -> Iterator[str]:
    """What is wrong with a Prometheus rule file's queries; rules may use what earlier ones record."""
    rules: list[dict[str, Any]] = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    known = _known() | {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        for problem in problems(rule["expr"], known):
            yield f"{rule.get('alert') or rule['record']}: {problem}"


@cache
def _known() -> frozenset[str]:
    return frozenset(known_samples())
