"""Plain ``vllm serve`` with ``VLLM_PLUGINS=dfmr``, several API processes, and another tower."""

from typing import Any

import httpx
import pytest
from pictures import flat, message, noise, scene
from serving import Server

pytestmark = pytest.mark.engine
FULL = 27 * 27


def ask(server: Server, *pictures: Any, **dfmr: Any) -> Any:
    return server.client.chat.completions.create(
        model="siglip",
        messages=message(*pictures),  # type: ignore[arg-type]
        max_tokens=2,
        temperature=0,
        extra_body={"dfmr": dfmr},
    )


def test_it_compresses_and_reports_like_dfmr_serve(siglip_server: Server) -> None:
    report = ask(siglip_server, flat(), noise()).dfmr
    assert report["original_visual_tokens"] == 2 * FULL
    assert report["images"][0]["factor"] > 1
    assert report["saved_visual_tokens"] == 2 * FULL - report["kept_visual_tokens"]


@pytest.mark.parametrize(("factor", "side"), [(1, 27), (2, 14), (3, 9), (4, 7), (6, 5)])
def test_partial_windows_at_the_edge_are_tokens_of_their_own(siglip_server: Server, factor: int, side: int) -> None:
    (image,) = ask(siglip_server, scene(4), factors=[factor]).dfmr["images"]
    assert (image["grid"], image["kept_tokens"]) == ([side, side], side * side)


def test_counters_are_right_over_all_api_processes(siglip_server: Server) -> None:
    before = {stage: siglip_server.total("dfmr_visual_tokens_total", stage=stage) for stage in ("original", "kept")}
    reports = [ask(siglip_server, scene(i)).dfmr for i in range(12)]
    for stage, count in before.items():
        grown = siglip_server.total("dfmr_visual_tokens_total", stage=stage) - count
        assert grown == sum(report[f"{stage}_visual_tokens"] for report in reports)


def test_a_full_encoder_queue_is_a_503_that_says_when_to_retry(siglip_server: Server) -> None:
    body = {"model": "siglip", "messages": message(*[noise(100 + i) for i in range(8)]), "max_tokens": 1}
    reply = httpx.post(f"{siglip_server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert "queue is full (2 pictures)" in reply.json()["error"]["message"]
    assert siglip_server.total("dfmr_image_errors_total", reason="overloaded") == 1
    assert ask(siglip_server, flat()).dfmr["images"]
