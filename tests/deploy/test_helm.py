"""The Helm chart: valid for Kubernetes with every values file, wired to itself, refusing values that make no sense."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import CHART, ROOT, passes, run

from deploy.catalogue import known_samples
from deploy.dashboards.__main__ import RULES, boards
from deploy.promql import problems
from server.cli import option_fields, vllm_arguments

VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
with_each_values = pytest.mark.parametrize("values", VALUES, ids=[path.stem for path in VALUES])
CUSTOM = {"ServiceMonitor": "prometheus-operator", "PrometheusRule": "prometheus-operator", "ScaledObject": "keda"}
"""Kinds that operators bring, and the package under @kubernetes-models that describes them."""


def rendered(values: Path | str, *options: str) -> dict[str, dict[str, Any]]:
    """Manifests by kind; the chart makes at most one of each."""
    path = Path(__file__).parent / "values" / f"{values}.yaml" if isinstance(values, str) else values
    printed = passes("helm", "template", "release", CHART, "--namespace", "vision", "--values", path, *options)
    manifests = [manifest for manifest in yaml.safe_load_all(printed) if manifest]
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    assert len(by_kind) == len(manifests)
    return by_kind


def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = pod(manifests)["containers"]
    server: dict[str, Any] = only
    return server


def test_there_are_enough_values_files() -> None:
    assert len(VALUES) >= 6


@with_each_values
def test_lint_is_content(values: Path) -> None:
    passes("helm", "lint", "--strict", CHART, "--values", values)


@with_each_values
def test_every_manifest_is_valid_for_kubernetes(values: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate: NOT CHECKED")
    for kind, manifest in rendered(values).items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(manifest, "1.33", strict=True)


@with_each_values
def test_custom_resources_are_valid_by_their_operators_own_types(values: Path) -> None:
    modules = os.environ.get("DFMR_NODE_MODULES")
    if not modules:
        pytest.skip("DFMR_NODE_MODULES does not name a folder with @kubernetes-models/*: NOT CHECKED")
    script = """
        const [path, kind, manifest] = process.argv.slice(1);
        new (require(path)[kind])(JSON.parse(manifest)).validate();
    """
    for kind, package in CUSTOM.items():
        if manifest := rendered(values).get(kind):
            path = Path(modules) / "@kubernetes-models" / package / manifest["apiVersion"] / kind
            passes("node", "-e", script, path, kind, json.dumps(manifest))


@with_each_values
def test_selectors_names_and_ports_fit_each_other(values: Path) -> None:
    manifests = rendered(values)
    deployment, service = manifests["Deployment"], manifests["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert service["spec"]["selector"].items() <= labels
    assert service["spec"]["ports"][0]["targetPort"] == container(manifests)["ports"][0]["name"]
    if budget := manifests.get("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    if monitor := manifests.get("ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod(manifests)["volumes"] if "persistentVolumeClaim" in v
    ]
    if claim := manifests.get("PersistentVolumeClaim"):
        assert claims == [claim["metadata"]["name"]]
    for scaler in (manifests.get("HorizontalPodAutoscaler"), manifests.get("ScaledObject")):
        if scaler:
            assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"]


@with_each_values
def test_the_server_takes_the_arguments(values: Path) -> None:
    server = container(rendered(values))
    arguments = vllm_arguments(server.get("args", ["model"]))
    assert arguments[0] == "serve"
    assert not [a for a in arguments if a.startswith("--dfmr")]


@with_each_values
def test_pods_run_without_privileges_and_are_probed(values: Path) -> None:
    manifests = rendered(values)
    server = container(manifests)
    assert pod(manifests)["securityContext"]["runAsNonRoot"]
    assert pod(manifests)["automountServiceAccountToken"] is False
    assert server["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for probe, path in {"startupProbe": "/health", "readinessProbe": "/ready", "livenessProbe": "/health"}.items():
        assert server[probe]["httpGet"] == {"path": path, "port": "http"}


@with_each_values
def test_pods_are_given_longer_to_stop_than_their_answers_take(values: Path) -> None:
    manifests = rendered(values)
    environment = {e["name"]: e.get("value") for e in container(manifests)["env"]}
    command = (
        container(manifests).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    )
    needed = int(environment["SHUTDOWN_TIMEOUT"]) + int(command[1])
    assert pod(manifests)["terminationGracePeriodSeconds"] >= needed + 10


def test_gpus_are_asked_for_and_used_together() -> None:
    server = container(rendered("tensor-parallel"))
    assert server["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert server["args"][:5] == ["org/llava-34b", "--served-model-name", "llava", "--tensor-parallel-size", "4"]
    assert container(rendered("default"))["resources"]["limits"] == {"nvidia.com/gpu": 1}
    cpu = rendered("cpu")
    assert container(cpu)["resources"]["limits"] == {"memory": "8Gi"}
    assert "args" not in container(cpu)
    assert "tolerations" not in pod(cpu)


def test_secrets_reach_the_server_by_reference_only() -> None:
    environment = {e["name"]: e.get("valueFrom") for e in container(rendered("tensor-parallel"))["env"]}
    assert environment["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert environment["VLLM_API_KEY"] == {"secretKeyRef": {"name": "clients", "key": "api-key"}}


def test_the_policy_becomes_options_that_mean_the_same() -> None:
    arguments = vllm_arguments(container(rendered("policy"))["args"])
    settings = json.loads(arguments[arguments.index("--additional-config") + 1])["dfmr"]
    values = yaml.safe_load((Path(__file__).parent / "values" / "policy.yaml").read_text())["dfmr"]
    assert settings == {name.replace("-", "_"): value for name, value in values.items()}


def test_profiles_are_mounted_whole_so_that_changes_reach_running_pods() -> None:
    assert "profiles" not in {volume["name"] for volume in pod(rendered("default"))["volumes"]}
    manifests = rendered("default", "--set", "profilesConfigMap=kinds")
    server = container(manifests)
    path = Path(server["args"][server["args"].index("--dfmr-profiles") + 1])
    (mount,) = (m for m in server["volumeMounts"] if m["mountPath"] == str(path.parent))
    assert "subPath" not in mount, "which is never updated"
    assert {"name": mount["name"], "configMap": {"name": "kinds"}} in pod(manifests)["volumes"]


def test_the_schema_knows_every_option_of_the_policy_and_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["dfmr"]["properties"].keys() == {name.replace("_", "-") for name in option_fields()}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, value in values.items():
        known = schema["properties"][name].get("properties")
        if known and name not in ("dfmr", "resources"):
            assert known.keys() == value.keys(), name


@pytest.mark.parametrize(
    "option",
    [
        "gpus=-1",
        "gpus=one",
        "dfmr.tua=0.3",
        "dfmr.tau=-1",
        "dfmr.max-batch=0",
        "replica=2",
        "service.port=0",
        "service.type=External",
        "autoscaling.kind=magic",
        "autoscaling.minReplicas=0",
        "autoscaling.prometheusUrl=prometheus",
        "persistence.accessModes={Sometimes}",
        "persistence.size=lots",
        "fullnameOverride=Not_A_Name",
        "serviceMonitor.interval=often",
    ],
)
def test_values_that_make_no_sense_are_refused(option: str) -> None:
    result = run("helm", "template", "release", CHART, "--set", option)
    assert result.returncode != 0
    assert option.split("=")[0].split(".")[0] in result.stderr


def test_rules_and_boards_are_the_generated_ones() -> None:
    manifests = rendered("observed")
    assert manifests["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    data = manifests["ConfigMap"]["data"]
    assert {name: json.loads(text) for name, text in data.items()} == {
        f"dfmr-{name}": board for name, board in boards().items()
    }
    assert sum(map(len, data.values())) < 1 << 20, "a ConfigMap holds at most 1 MiB"


def test_the_chart_has_the_projects_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert chart["description"] == project["description"]


def test_the_job_is_called_what_the_rules_call_it() -> None:
    manifests = rendered("observed")
    label = manifests["ServiceMonitor"]["spec"]["jobLabel"]
    assert manifests["Service"]["metadata"]["labels"][label] == "dfmr-server"
    assert 'job="dfmr-server"' in RULES.read_text()


def test_autoscalers_ask_for_what_waits_and_what_runs() -> None:
    triggers = [trigger["metadata"] for trigger in rendered("keda")["ScaledObject"]["spec"]["triggers"]]
    assert [trigger["threshold"] for trigger in triggers] == ["8", "64"]
    for trigger in triggers:
        assert list(problems(trigger["query"], known_samples())) == []
        assert 'namespace="vision", service="release-dfmr-server"' in trigger["query"]
    metrics = rendered("hpa")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [m["pods"]["metric"]["name"] for m in metrics] == ["dfmr_waiting", "dfmr_running"]
    assert [m["pods"]["target"]["averageValue"] for m in metrics] == ["4", "64"]


def test_notes_tell_prometheus_adapter_which_recorded_series_the_hpa_reads() -> None:
    rules = yaml.safe_load(notes_of("hpa").split("these rules:\n")[1].split("\n\nWhoever")[0])
    assert [rule["name"]["as"] for rule in rules] == ["dfmr_waiting", "dfmr_running"]
    for rule in rules:
        series = rule["seriesQuery"].split("{")[0]
        assert f"record: {series}" in RULES.read_text()


def notes_of(values: str) -> str:
    path = Path(__file__).parent / "values" / f"{values}.yaml"
    return passes("helm", "install", "release", CHART, "--dry-run=client", "--values", path).split("NOTES:")[1]


def test_notes_warn_of_a_volume_that_replicas_cannot_share() -> None:
    assert "WARNING" not in notes_of("default")
    assert "WARNING" in notes_of("policy")
    assert "WARNING" not in notes_of("hpa")


def test_notes_say_what_an_upgrade_needs() -> None:
    assert "needs 1 free GPU(s) on the node of the cache volume" in notes_of("default")
    assert "needs 1 free GPU(s).\n" in notes_of("hpa")
