"""The report against a real Prometheus that scraped our real collectors."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deploy_tools import tool
from prometheus_client import start_http_server
from serving import free_port

from server.metrics import BASELINE_TTFT, CACHE_BYTES, TTFT
from server.report.cli import main
from server.savings import ImageReport, Report, Savings

MODEL = "test-report-prometheus"
WAIT_SECONDS = 120
IMAGE = ImageReport(grid=(12, 12), factor=2, score=0.2, kept_tokens=144, cached=False)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, after it has seen the counters at zero and then after ten requests and 30 pairs."""
    savings = Savings(MODEL, (24, 24), (1, 2))
    savings.kv_bytes_per_token = 1e6
    CACHE_BYTES.clear()  # of other tests' models, which would count as instances that run
    CACHE_BYTES.labels(MODEL).set(0)
    folder = tmp_path_factory.mktemp("prometheus")
    target, port = free_port(), free_port()
    exporter, thread = start_http_server(target, "127.0.0.1")
    scrape = {"job_name": "dfmr-server", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def seen(tokens: float) -> bool:
        query = f'dfmr_visual_tokens_total{{model_name="{MODEL}", stage="original"}}'
        try:
            result = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=10).json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return bool(result) and float(result[0]["value"][1]) == tokens

    try:
        wait_for(lambda: seen(0))
        for _ in range(10):
            savings.count(
                Report(original_visual_tokens=576, kept_visual_tokens=144, saved_visual_tokens=432, images=[IMAGE])
            )
        for _ in range(30):
            TTFT.labels(MODEL, "default").observe(0.1)
            BASELINE_TTFT.labels(MODEL, "default").observe(0.4)
        wait_for(lambda: seen(5760))
        time.sleep(2)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        exporter.shutdown()
        thread.join()


def test_figures_are_those_of_the_counters(prometheus: str, tmp_path: Path) -> None:
    assert (
        main(["--prometheus", prometheus, "--since", "5m", "--gpu-hour", "3.6", "--output", str(tmp_path / "r")]) == 0
    )
    result = json.loads((tmp_path / "r.json").read_text())
    (section,) = [s for s in result["sections"] if s["model"] == MODEL]
    figures = {figure["name"]: figure["value"] for figure in section["figures"]}
    # increase() extrapolates to the ends of what it saw, so every counter is high by the same few per cent.
    high = figures["Visual tokens of the encoder"] / 5760
    assert 1 <= high < 3
    assert figures["Visual tokens saved"] == pytest.approx(4320 * high)
    assert figures["KV cache not written"] == pytest.approx(4.32 * high)
    assert figures["Share saved"] == pytest.approx(0.75)
    assert figures["Time to first token saved"] == pytest.approx(0.75)
    assert figures["Prefill time saved"] == pytest.approx(0.3 * 10 * high)
    ownership = {figure["name"]: figure["value"] for figure in result["ownership"]}
    assert 1 / 3600 < ownership["GPU hours"] < 300 / 3600
    assert figures["KV cache not held"] is None, "there is no vLLM that tells how long requests hold their cache"


def test_a_prometheus_without_our_counters_is_told(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    # A time before the first scrape is as a Prometheus that does not scrape the server.
    from server.report.prometheus import Prometheus, PrometheusError, read

    with pytest.raises(PrometheusError, match="does it scrape the server"):
        read(Prometheus(prometheus), time.time() - 86400, 60)


def test_a_query_that_is_refused_is_told(prometheus: str) -> None:
    from server.report.prometheus import Prometheus, PrometheusError

    with pytest.raises(PrometheusError, match="parse error"):
        Prometheus(prometheus).instant("sum(", time.time())
