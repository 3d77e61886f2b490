"""README's table of speed says what was measured, and which targets were missed."""

from pathlib import Path

import pytest

from evals.results import Target
from loadtests import readme


def target(measured: float | None, *, passed: bool) -> Target:
    return Target(name="waits", target="<= 1.5", measured=measured, passed=passed)


def test_a_missed_and_an_unmeasured_target_are_told() -> None:
    rows = readme.table([target(0.21584, passed=True), target(2.3171, passed=False), target(None, passed=False)])
    assert rows.splitlines()[2:] == [
        "| waits | 0.216 | <= 1.5 |",
        "| waits | 2.32: **missed** | <= 1.5 |",
        "| waits | **not measured** | <= 1.5 |",
    ]


def test_only_the_marked_part_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    monkeypatch.setattr(readme, "README", page)
    text = readme.page()
    assert text.startswith("before\n<!-- bench -->\n| | measured | target |\n")
    assert text.endswith("|\n<!-- /bench -->\nafter\n")
    assert "old" not in text
    page.write_text("no place for it")
    with pytest.raises(ValueError, match="needs one part between"):
        readme.page()
