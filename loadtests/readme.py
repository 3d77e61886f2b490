"""Writes README's table of speed from the whole run in results: ``python -m loadtests.readme [--check]``."""

import re
import sys

from deploy.generated import ROOT, parser, report, write_or_check
from evals.results import Target
from loadtests.results import Results

README = ROOT / "README.md"
RESULTS = ROOT / "loadtests" / "results" / "bench-full.json"
_SECTION = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def table(targets: list[Target]) -> str:
    """The targets as Markdown."""
    rows = [f"| {target.name} | {_measured(target)} | {target.target} |\n" for target in targets]
    return "| | measured | target |\n|---|---|---|\n" + "".join(rows)


def page() -> str:
    """README with the table in it.

    Raises:
        ValueError: it has no place for the table.
    """
    rows = table(Results.model_validate_json(RESULTS.read_text()).targets)
    text, found = _SECTION.subn(lambda _: rows, README.read_text())
    if found != 1:
        raise ValueError(f"{README} needs one part between <!-- bench --> and <!-- /bench -->")
    return text


def _measured(target: Target) -> str:
    if target.measured is None:
        return "**not measured**"
    shown = f"{target.measured:.3g}"
    return shown if target.passed else f"{shown}: **missed**"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with ``--check`` say whether it has drifted."""
    options = parser("loadtests.readme", __doc__).parse_args(arguments)
    return report("loadtests.readme", write_or_check({README: page()}, check=options.check))


if __name__ == "__main__":
    sys.exit(main())
