"""The boards are what the generator makes, fit Grafana, and claim nothing that was not measured."""

import json
import os
import re
from itertools import combinations
from pathlib import Path

import pytest
from deploy_tools import passes

from deploy import generated
from deploy.dashboards import __main__ as command
from deploy.dashboards.check import board_problems, queries, rule_problems
from deploy.dashboards.panels import GRID_WIDTH, Json
from deploy.dashboards.vllm_row import with_row

BOARDS = command.boards()
GRAFANA_TYPES = """
import { Dashboard } from "@grafana/schema";
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""
"""Grafana's type of a board, with enumerations as the strings that stand in JSON."""

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def overlap(one: Json, other: Json) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def assert_laid_out(board: Json) -> None:
    positions = [panel["gridPos"] for panel in board["panels"]]
    assert all(p["x"] >= 0 and p["y"] >= 0 and p["w"] > 0 and p["h"] > 0 for p in positions)
    assert all(p["x"] + p["w"] <= GRID_WIDTH for p in positions)
    assert not [pair for pair in combinations(positions, 2) if overlap(*pair)]
    bottom = max(p["y"] + p["h"] for p in positions)
    assert sum(p["w"] * p["h"] for p in positions) == GRID_WIDTH * bottom, "the grid has holes"


def test_the_files_are_up_to_date_and_every_query_names_metrics_that_exist() -> None:
    assert command.main(["--check"]) == 0


@each_board
def test_panels_do_not_overlap_leave_holes_or_stick_out(board: Json) -> None:
    assert_laid_out(board)


@each_board
def test_every_panel_has_an_id_a_title_a_description_a_unit_and_a_query(board: Json) -> None:
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        units = [panel["fieldConfig"]["defaults"].get("unit"), panel.get("options", {}).get("yAxis", {}).get("unit")]
        units += [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"]
        assert any(units), f"{panel['title']} has no unit"


@each_board
def test_boards_can_be_narrowed_to_a_data_source_models_and_instances(board: Json) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert {"datasource", "model_name", "instance"} <= variables.keys()
    assert variables["datasource"]["type"] == "datasource"
    for panel in panels(board):
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"], panel["title"]
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval", "__range"}
            assert used <= variables.keys()


@each_board
def test_what_rests_on_a_number_that_the_reader_typed_is_called_an_estimate_and_shows_its_formula(board: Json) -> None:
    typed = {v["name"] for v in board["templating"]["list"] if v["type"] == "textbox"}
    for panel in panels(board):
        estimated = any(f"${name}" in target["expr"] for target in panel["targets"] for name in typed)
        assert estimated == ("estimate" in panel["title"].lower()), panel["title"]
        assert estimated == ("Formula" in panel["description"]), panel["title"]


@each_board
def test_titles_fit_their_panels(board: Json) -> None:
    for panel in panels(board):
        assert len(panel["title"]) <= 7 * panel["gridPos"]["w"], "the end of a title, (estimate) say, would be cut off"


def test_there_are_the_boards_that_operators_are_told_of() -> None:
    assert [board["title"].split(" / ")[1] for board in BOARDS.values()][:3] == ["Savings", "Latency", "Health"]
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


def test_a_query_of_an_unknown_metric_or_in_broken_promql_is_found() -> None:
    board = json.loads(json.dumps(BOARDS["vllm-row.json"]))
    target = panels(board)[0]["targets"][0]
    target["expr"] = 'sum(rate(dfmr_visual_token_total{instance=~"$instance"}[$__rate_interval]))'
    assert "no metric is called dfmr_visual_token_total" in next(board_problems(board))
    target["expr"] = "sum(rate("
    assert "does not parse" in next(board_problems(board))


def test_rules_are_held_to_the_same_metrics_and_may_use_what_they_record() -> None:
    rule = "groups: [{name: g, rules: [{record: 'a:b', expr: sum(up)}, {alert: A, expr: 'a:b > 1 and a:c > 1'}]}]"
    assert list(rule_problems(rule)) == ["A: no metric is called a:c"]


def test_drift_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(command, "GRAFANA", tmp_path / "grafana")
    monkeypatch.setattr(command, "CHART", tmp_path / "chart")
    assert command.main(["--check"]) == 1
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    board = tmp_path / "grafana" / "savings.json"
    board.write_text(board.read_text().replace("Keep ratio", "Kept", 1))
    assert command.main(["--check"]) == 1


def test_the_row_goes_below_another_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = BOARDS["health.json"]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert command.main(["--add-row-to", str(path)]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert merged["panels"][: len(other["panels"])] == other["panels"]
    assert len(merged["panels"]) == len(other["panels"]) + len(BOARDS["vllm-row.json"]["panels"])
    assert len({panel["id"] for panel in merged["panels"]}) == len(merged["panels"])
    assert_laid_out(merged)
    assert list(queries(merged))


def test_a_board_without_the_rows_variables_is_refused() -> None:
    with pytest.raises(ValueError, match="model_name"):
        with_row({"panels": [], "templating": {"list": [{"name": "datasource"}, {"name": "instance"}]}})


def test_boards_are_valid_by_grafanas_own_types(tmp_path: Path) -> None:
    modules = os.environ.get("DFMR_NODE_MODULES")
    if not modules:
        pytest.skip("DFMR_NODE_MODULES does not name a folder with @grafana/schema and typescript: NOT CHECKED")
    (tmp_path / "node_modules").symlink_to(modules)
    boards = [f"export const board{i}: Plain<Dashboard> = {json.dumps(b)};" for i, b in enumerate(BOARDS.values())]
    (tmp_path / "boards.ts").write_text("\n".join([GRAFANA_TYPES, *boards]))
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext")
    passes("node", Path(modules) / "typescript" / "bin" / "tsc", *options, tmp_path / "boards.ts", cwd=tmp_path)
