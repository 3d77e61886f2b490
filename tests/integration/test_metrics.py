"""What an operator sees on ``/metrics``."""

import time

import httpx
import pytest
from pictures import flat, message, noise, scene
from serving import Server

pytestmark = pytest.mark.engine
KV_BYTES_PER_TOKEN = 2 * 2 * 128 * 4
"""Layers x (key, value) x width x float32 of the small test model."""


def test_the_page_counts_exactly_what_the_responses_reported(server: Server) -> None:
    names = ("original", "kept")
    before = {name: server.total("dfmr_visual_tokens_total", stage=name) for name in names}
    kv_before, images_before = server.total("dfmr_kv_bytes_saved_total"), server.total("dfmr_images_total")
    reports = [
        server.client.chat.completions.create(
            model="small",
            messages=message(*pictures),  # type: ignore[arg-type]
            max_tokens=1,
        ).dfmr  # type: ignore[attr-defined]
        for pictures in ([flat()], [noise(5), scene(2)], [scene(8), scene(8)])
    ]
    for name in names:
        grown = server.total("dfmr_visual_tokens_total", stage=name) - before[name]
        assert grown == sum(report[f"{name}_visual_tokens"] for report in reports)
    saved = sum(report["saved_visual_tokens"] for report in reports)
    assert server.total("dfmr_kv_bytes_saved_total") - kv_before == saved * KV_BYTES_PER_TOKEN
    assert server.total("dfmr_images_total") - images_before == 5


def test_what_vllm_refuses_after_its_pictures_were_encoded_counts_as_nothing(server: Server) -> None:
    before = server.total("dfmr_visual_tokens_total"), server.total("dfmr_images_total")
    body = {"model": "small", "messages": message(noise(6)), "temperature": -1}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 400
    assert (server.total("dfmr_visual_tokens_total"), server.total("dfmr_images_total")) == before


def test_vllms_own_count_of_running_requests_falls_back_to_none(server: Server) -> None:
    for stream in (False, True):
        body = {"model": "small", "messages": message(flat()), "max_tokens": 1, "stream": stream}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).status_code == 200
    end = time.monotonic() + 10
    while (load := httpx.get(f"{server.url}/load").json()["server_load"]) and time.monotonic() < end:
        time.sleep(0.05)
    assert load == 0


def test_every_sample_carries_vllms_model_name(server: Server) -> None:
    ours = [key for key in server.metrics() if key.startswith("dfmr_")]
    assert len(ours) > 50
    assert all('model_name="small"' in key for key in ours)
    assert server.total("vllm:request_success_total", model_name="small") > 0


def test_refused_pictures_are_counted_by_reason(server: Server) -> None:
    before = server.total("dfmr_image_errors_total", reason="decode")
    with pytest.raises(Exception, match="image 0"):
        server.client.chat.completions.create(
            model="small",
            messages=message("data:image/png;base64,aGVsbG8="),  # type: ignore[arg-type]
            max_tokens=1,
        )
    assert server.total("dfmr_image_errors_total", reason="decode") == before + 1


def test_a_refused_detail_is_counted_too(server: Server) -> None:
    before = server.total("dfmr_image_errors_total", reason="detail")
    messages = message(flat())
    messages[0]["content"][0]["image_url"]["detail"] = "ultra"
    body = {"model": "small", "messages": messages}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).status_code == 400
    assert server.total("dfmr_image_errors_total", reason="detail") == before + 1
