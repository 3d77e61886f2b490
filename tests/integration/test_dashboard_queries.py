"""Every query of every board, and every rule, against a real Prometheus that scraped the real server under traffic."""

import base64
import io
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from deploy_tools import tool
from PIL import Image
from serving import PROFILES_TEXT, Server

from deploy.dashboards.__main__ import RULES, boards
from deploy.dashboards.check import example_values
from deploy.promql import substituted
from server.report.cli import main as report

pytestmark = pytest.mark.engine

START_SECONDS = 60
PAIRS = "dfmr_baseline_agreement_count"
KV_BYTES_PER_TOKEN = 2 * 2 * 128 * 4
"""Layers x (key, value) x width x float32 of the small test model."""
MAY_BE_EMPTY = {("HTTP answers by status", "5xx")}
"""Panel and legend of what a healthy server has no series of."""
WATCHED = PROFILES_TEXT.replace(
    "profiles:\n",
    """profiles:
  watched:
    calibrated: gauges.json
    drift: {window: 50, least: 20}
    pressure: {high: 0.9, low: 0.8, steps: [{max_tokens_per_image: 144}]}
""",
)


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {START_SECONDS} s for {what}"
        time.sleep(0.2)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=30)
        body = reply.json()
        assert body["status"] == "success", f"{expr}\n{body}"
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def total(self, expr: str) -> float:
        return sum(float(series["value"][1]) for series in self.query(expr))

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def watched(server: Server, gauges: Path, own_profiles: None) -> str:
    """The name of a profile that watches for drift and pressure."""
    assert server.reload_profiles(WATCHED).status_code == 200
    return "watched"


@pytest.fixture(scope="module")
def prometheus(server: Server, watched: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with our rules, scraping the server once a second, after two rounds of traffic that it saw apart."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "dfmr-server", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--storage.tsdb.path={folder / 'data'}"], stdout=log, stderr=log)
    running = Prometheus(f"http://{address}")
    try:
        wait_for(running.ready, "Prometheus")
        for _ in range(2):
            before, pairs = running.total("dfmr_images_total"), running.total(PAIRS)
            # Drift is told from 20 pictures on.
            options = [None, *[{"profile": watched}] * 3]
            accepted = sum(send_traffic(server.url, dfmr) for dfmr in options)
            wait_for(lambda b=before, a=accepted: running.total("dfmr_images_total") >= b + a, "a scrape")
            wait_for(lambda p=pairs: running.total(PAIRS) >= p + 1, "a request to be run again without compression")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def send_traffic(url: str, dfmr: dict[str, Any] | None = None) -> int:
    """Pictures from empty to dense, one of them twice, one broken; the number of those that are accepted."""
    model = httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"]
    noise = np.random.default_rng(time.time_ns()).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    flat = Image.new("RGB", (336, 336), tuple(int(c) for c in noise[0, 0]))
    pictures = [data_url(flat), data_url(flat), data_url(Image.fromarray(noise))]
    assert ask(url, model, ["data:image/png;base64,aGVsbG8="], dfmr) == 400
    # The last is compressed: it can be run again without compression, as no other request comes in between.
    sent = [pictures[:2], [pictures[2]], [pictures[0]]]
    assert [ask(url, model, some, dfmr) for some in sent] == [200, 200, 200]
    return 4


def ask(url: str, model: str, pictures: list[str], dfmr: dict[str, Any] | None) -> int:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    content.append({"type": "text", "text": "What is this?"})
    body = {"model": model, "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    body |= {"dfmr": dfmr} if dfmr else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).status_code


def data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grown(prometheus: Prometheus, stage: str) -> float:
    return prometheus.total(f'sum(increase(dfmr_visual_tokens_total{{profile="default", stage="{stage}"}}[10m]))')


def test_the_cost_report_says_what_the_server_counted(prometheus: Prometheus, server: Server, tmp_path: Path) -> None:
    arguments = ["--prometheus", prometheus.url, "--since", "10m", "--gpu-hour", "2.5", "--output", str(tmp_path / "r")]
    stages = {"Visual tokens of the encoder": "original", "Visual tokens kept": "kept"}
    before = {name: grown(prometheus, stage) for name, stage in stages.items()}
    assert report(arguments) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    (section,) = [s for s in result["sections"] if s["profile"] == "default"]
    figures = {figure["name"]: figure for figure in section["figures"]}
    for name, stage in stages.items():
        # What Prometheus extrapolates to the ends of the range changes with every scrape of a young series.
        low, high = sorted((before[name], grown(prometheus, stage)))
        assert 0.9 * low <= figures[name]["value"] <= 1.1 * high
    saved, whole = (figures[name]["value"] for name in ("KV cache not written", "Visual tokens saved"))
    assert saved * 1e9 / whole == pytest.approx(KV_BYTES_PER_TOKEN, rel=0.01)
    assert figures["Time to first token, uncompressed"]["value"] > 0
    assert figures["Time to first token saved"]["kind"] == "measured"
    ownership = {figure["name"]: figure["value"] for figure in result["ownership"]}
    assert 0 < ownership["GPU hours"] < 1
    assert result["timeline"]
    assert "<svg" in (tmp_path / "r.html").read_text()


TARGETS = [
    pytest.param(name, panel["title"], target, id=f"{name}-{panel['id']}{target['refId']}")
    for name, board in boards().items()
    for panel in board["panels"]
    for target in panel.get("targets", ())
]


@pytest.mark.parametrize(("board", "title", "target"), TARGETS)
def test_every_query_returns_data(prometheus: Prometheus, board: str, title: str, target: dict[str, Any]) -> None:
    result = prometheus.query(substituted(target["expr"], example_values(boards()[board])))
    if (title, target["legendFormat"]) not in MAY_BE_EMPTY:
        assert result, f"{title}: no data\n{target['expr']}"
        assert all(series["value"][1] != "NaN" for series in result), f"{title}: NaN\n{result}"


def test_variables_have_values(prometheus: Prometheus) -> None:
    series = prometheus.query("dfmr_cache_bytes")
    assert series
    assert all(s["metric"]["model_name"] and s["metric"]["instance"] for s in series)


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = httpx.get(f"{prometheus.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()), "an evaluation of the rules")
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []


def test_no_alert_is_raised_by_a_healthy_server(prometheus: Prometheus) -> None:
    assert prometheus.query('ALERTS{alertstate="firing"}') == []


def test_recorded_saving_is_what_the_counters_say(prometheus: Prometheus) -> None:
    wait_for(lambda: prometheus.query("model:dfmr_saved_ratio:rate30m"), "the recording rule")
    (series,) = prometheus.query("model:dfmr_saved_ratio:rate30m")
    assert 0 < float(series["value"][1]) < 1
