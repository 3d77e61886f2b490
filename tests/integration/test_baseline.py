"""Sampled requests are run again, compressed and whole, behind the user's back and never in the user's way."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from pictures import data_url, flat, message, noise
from serving import REQUEST_LOG, Server

pytestmark = pytest.mark.engine
WAIT_SECONDS = 120
STILL_SECONDS = 3
SAVINGS = ("dfmr_visual_tokens_total", "dfmr_images_total", "dfmr_kv_bytes_saved_total", "dfmr_cache_bytes")


def settle(server: Server, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, {k: v for k, v in server.metrics().items() if "baseline_runs" in k}
        time.sleep(0.2)


def drawn(server: Server) -> float:
    return server.total("dfmr_baseline_runs_total")


@pytest.fixture(autouse=True)
def earlier_pairs_are_done(server: Server) -> None:
    """The server has answered other tests, and some of their pairs may still be waiting or running."""
    seen, since = -1.0, time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        runs, running = drawn(server), server.total("vllm:num_requests_running")
        if runs != seen or running:
            seen, since = runs, time.monotonic()
        return time.monotonic() - since > STILL_SECONDS

    settle(server, still)


def ask(server: Server, *pictures: Any, **options: Any) -> Any:
    """One request, and the wait until its pair has been run."""
    settle(server, lambda: server.total("vllm:num_requests_running") == 0)
    before = drawn(server)
    reply = server.client.chat.completions.create(
        model="small",
        messages=message(*pictures),  # type: ignore[arg-type]
        **options,
    )
    if options.get("stream"):
        list(reply)
    settle(server, lambda: drawn(server) > before)
    return reply


@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_request_gives_a_pair_of_times_and_at_temperature_0_of_answers(
    server: Server, stream: bool
) -> None:
    names = ("dfmr_ttft_seconds_count", "dfmr_baseline_ttft_seconds_count", "dfmr_baseline_agreement_count")
    before = {name: server.total(name) for name in (*names, "dfmr_baseline_answers_total")}
    ask(server, flat(), max_tokens=8, temperature=0, stream=stream)
    assert {name: server.total(name) - before[name] for name in before} == dict.fromkeys(before, 1)
    assert server.total("dfmr_baseline_runs_total", outcome="failed") == 0


def test_what_is_measured_is_not_counted_as_traffic(server: Server) -> None:
    ask(server, noise(3), flat(), max_tokens=2)
    before = {name: server.total(name) for name in SAVINGS}
    report = ask(server, noise(3), flat(), max_tokens=2).dfmr
    assert server.total("dfmr_visual_tokens_total") - before["dfmr_visual_tokens_total"] == (
        report["original_visual_tokens"] + report["kept_visual_tokens"]
    )
    assert server.total("dfmr_images_total") - before["dfmr_images_total"] == 2
    assert server.total("dfmr_cache_bytes") == before["dfmr_cache_bytes"], "the whole picture was put into the cache"


def test_answers_at_other_temperatures_are_not_compared(server: Server) -> None:
    before = server.total("dfmr_baseline_answers_total"), server.total("dfmr_ttft_seconds_count")
    ask(server, flat(), max_tokens=4, temperature=1)
    assert server.total("dfmr_baseline_answers_total") == before[0]
    assert server.total("dfmr_ttft_seconds_count") == before[1] + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_and_its_pair_are_logged_without_text_or_pictures(server: Server, stream: bool) -> None:
    log = server.model.parent / REQUEST_LOG
    before = len(log.read_text().splitlines())
    ask(server, flat(), noise(4), max_tokens=2, temperature=0, stream=stream)
    settle(server, lambda: len(log.read_text().splitlines()) >= before + 2)
    request, pair = (json.loads(line) for line in log.read_text().splitlines()[before : before + 2])
    assert (request["kind"], request["images"], request["original_visual_tokens"]) == ("request", 2, 1152)
    assert request["kv_bytes_saved"] > 0
    assert request["seconds"] > 0
    assert (pair["kind"], pair["profile"]) == ("pair", "default")
    assert pair["ttft"] > 0
    assert pair["baseline_ttft"] > 0
    assert "What is this" not in log.read_text()


def test_a_request_that_kept_every_token_has_nothing_to_compare(server: Server) -> None:
    settle(server, lambda: server.total("vllm:num_requests_running") == 0)
    before = drawn(server)
    server.client.chat.completions.create(
        model="small",
        messages=message(data_url(flat())),  # type: ignore[arg-type]
        max_tokens=1,
        extra_body={"dfmr": {"enabled": False}},
    )
    ask(server, flat(), max_tokens=1)
    assert drawn(server) == before + 1
