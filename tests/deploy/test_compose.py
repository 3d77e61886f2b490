"""Compose starts a server and what watches it, each wired to the others and to the generated files."""

import json
from typing import Any

import pytest
import yaml
from deploy_tools import DEPLOY, passes

from deploy.dashboards.__main__ import boards

FILE = DEPLOY / "compose.yaml"
GRAFANA = DEPLOY / "grafana" / "provisioning"


def resolved(profile: str) -> dict[str, Any]:
    printed = passes("docker-compose", "--file", FILE, "--profile", profile, "config", "--format", "json")
    config: dict[str, Any] = json.loads(printed)
    return config


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_each_profile_is_valid_and_starts_one_server_and_its_observers(profile: str) -> None:
    passes("docker-compose", "--file", FILE, "--profile", profile, "config", "--quiet")
    services = resolved(profile)["services"]
    assert services.keys() == {f"server-{profile}", "prometheus", "alertmanager", "grafana"}
    server = services[f"server-{profile}"]
    assert server["build"]["target"] == profile
    assert server["networks"]["default"]["aliases"] == ["server"]


def test_only_the_gpu_profile_asks_for_a_gpu() -> None:
    (device,) = resolved("gpu")["services"]["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "deploy" not in resolved("cpu")["services"]["server-cpu"]


def test_a_server_is_given_longer_to_stop_than_it_takes_to_finish_answers() -> None:
    server = resolved("cpu")["services"]["server-cpu"]
    assert server["stop_grace_period"] == "1m15s"
    assert int(server["environment"]["SHUTDOWN_TIMEOUT"]) < 75


def test_images_are_pinned_and_only_the_api_is_published_beyond_this_machine() -> None:
    services = resolved("cpu")["services"]
    for name, service in services.items():
        for port in service["ports"]:
            assert name == "server-cpu" or port["host_ip"] == "127.0.0.1"
        if "build" not in service:
            assert service["image"].split(":")[1] not in ("", "latest")


def test_every_file_that_is_mounted_exists() -> None:
    for service in resolved("cpu")["services"].values():
        for volume in service["volumes"]:
            if volume["type"] == "bind":
                assert (DEPLOY / volume["source"]).exists()
                assert volume["read_only"]


def test_grafana_finds_prometheus_and_the_three_boards() -> None:
    services = resolved("cpu")["services"]
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "dfmr.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    mounted = {v["target"] for v in services["grafana"]["volumes"]}
    expected = {f"{folder}/{name}" for name in boards() if name != "vllm-row.json"}
    assert expected <= mounted
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in expected


def test_prometheus_scrapes_the_server_and_tells_alertmanager() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "dfmr-server"
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["alertmanager:9093"]}]}]
