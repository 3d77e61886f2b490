"""Prometheus' own tools accept the rules, which fire when they should, and operators can read what to do then."""

import re
from typing import Any

import pytest
import yaml
from deploy_tools import DEPLOY, ROOT, passes

PROMETHEUS = DEPLOY / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
CASES = ROOT / "tests" / "deploy" / "rules_test.yml"


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_every_alert_has_a_summary_a_severity_a_delay_a_paragraph_and_a_case(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["annotations"]["summary"]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["for"]
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    paragraph = re.search(rf"^## {name}\n\n(.+?)(?:\n\n## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert paragraph is not None, f"docs/runbook.md has no paragraph on {name}"
    assert len(paragraph[1].split()) > 40
    assert name in CASES.read_text()


def test_the_runbook_knows_no_other_alerts() -> None:
    assert set(re.findall(r"^## (Dfmr\w+)", RUNBOOK, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_options_that_the_runbook_names_exist() -> None:
    from server.cli import option_fields

    ours = {f"--dfmr-{name.replace('_', '-')}" for name in option_fields()}
    named = set(re.findall(r"--dfmr-[a-z-]*[a-z]", RUNBOOK))
    assert named
    assert named <= ours


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    passes("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    passes("promtool", "check", "rules", PROMETHEUS / "rules.yml")


def test_alertmanager_takes_its_configuration() -> None:
    passes("amtool", "check-config", PROMETHEUS / "alertmanager.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    passes("promtool", "test", "rules", CASES)
