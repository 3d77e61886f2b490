"""Writes the Grafana boards, and copies them and the Prometheus rules into the Helm chart.

``--check`` writes nothing and fails if a file has drifted, or if a query, of a board or a rule, does not parse or names
a metric that neither ``server/metrics.py`` nor the installed vLLM defines.
"""

import json
import sys
from pathlib import Path

from deploy.dashboards.check import board_problems, rule_problems
from deploy.dashboards.health import health
from deploy.dashboards.latency import latency
from deploy.dashboards.panels import Json
from deploy.dashboards.savings import savings
from deploy.dashboards.vllm_row import row, with_row
from deploy.generated import ROOT, parser, report, write_or_check

GRAFANA = ROOT / "deploy" / "grafana"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
CHART = ROOT / "deploy" / "helm" / "dfmr-server" / "files"


def boards() -> dict[str, Json]:
    """Every board by the name of its file."""
    return {"savings.json": savings(), "latency.json": latency(), "health.json": health(), "vllm-row.json": row()}


def files() -> dict[Path, str]:
    """Every generated file and what belongs into it."""
    texts = {name: as_text(board) for name, board in boards().items()}
    return {
        **{GRAFANA / name: text for name, text in texts.items()},
        **{CHART / "dashboards" / name: text for name, text in texts.items()},
        CHART / "rules.yml": RULES.read_text(),
    }


def as_text(board: Json) -> str:
    return json.dumps(board, indent=2) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write, check, or print another board with our row in it."""
    command = parser("deploy.dashboards", __doc__)
    command.add_argument(
        "--add-row-to", type=Path, metavar="BOARD.json", help="print that board, vLLM's overview say, with our row"
    )
    options = command.parse_args(arguments)
    if options.add_row_to:
        print(as_text(with_row(json.loads(options.add_row_to.read_text()))), end="")
        return 0
    complaints = [f"{name}: {problem}" for name, board in boards().items() for problem in board_problems(board)]
    complaints += [f"rules.yml: {problem}" for problem in rule_problems(RULES.read_text())]
    return report("deploy.dashboards", complaints + write_or_check(files(), check=options.check))


if __name__ == "__main__":
    sys.exit(main())
