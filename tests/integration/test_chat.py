"""What a client of the OpenAI API sees: sync, async, streaming, and plain HTTP."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from pictures import data_url, flat, message, noise, part, scene
from serving import MAX_IMAGES, MAX_MODEL_LEN, Server

pytestmark = pytest.mark.engine
FULL = 576


def ask(server: Server, *pictures: Any, **extra: Any) -> Any:
    return server.client.chat.completions.create(
        model="small", messages=message(*pictures), max_tokens=4, temperature=0, extra_body=extra
    )


def test_a_flat_picture_costs_fewer_tokens_than_a_dense_one_in_the_same_request(server: Server) -> None:
    response = ask(server, flat(), noise())
    first, second = response.dfmr["images"]
    assert first["factor"] > second["factor"] == 1
    assert first["kept_tokens"] == first["grid"][0] * first["grid"][1] < second["kept_tokens"] == FULL


def test_the_report_adds_up_and_agrees_with_usage_and_headers(server: Server) -> None:
    raw = server.client.chat.completions.with_raw_response.create(
        model="small",
        messages=message(flat(), scene(3), noise()),  # type: ignore[arg-type]
        max_tokens=2,
    )
    response = raw.parse()
    report = response.dfmr  # type: ignore[attr-defined]
    kept = sum(image["kept_tokens"] for image in report["images"])
    assert report["original_visual_tokens"] == 3 * FULL
    assert report["kept_visual_tokens"] == kept == response.usage.prompt_tokens_details.multimodal_tokens["image"]  # type: ignore[union-attr]
    assert report["saved_visual_tokens"] == 3 * FULL - kept
    assert (report["metric"], report["aggregate"]) == ("std", "mean")
    assert raw.headers["x-dfmr-visual-tokens-original"] == str(3 * FULL)
    assert raw.headers["x-dfmr-visual-tokens-kept"] == str(kept)


def test_detail_decides_per_picture(server: Server) -> None:
    picture = scene(2)
    content = [part(picture, "high"), part(picture, "low"), part(picture, "auto"), {"type": "text", "text": "?"}]
    response: Any = server.client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
        max_tokens=1,
    )
    high, low, auto = response.dfmr["images"]
    assert (high["factor"], low["factor"]) == (1, 6)
    assert auto["factor"] == ask(server, picture).dfmr["images"][0]["factor"]


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"enabled": False}, 1),
        ({"factors": [2]}, 2),
        ({"factors": [1, 4], "tau": 1000}, 4),
        ({"tau": 0}, 1),
        ({"tau": 0, "max_tokens_per_image": 100}, 3),
        ({"tau": {"2": 1000, "3": 0, "4": 0, "6": 0}}, 2),
    ],
)
def test_options_of_the_request_override_the_servers_policy(
    server: Server, options: dict[str, Any], factor: int
) -> None:
    assert ask(server, scene(7), dfmr=options).dfmr["images"][0]["factor"] == factor


def test_openais_original_keeps_everything(server: Server) -> None:
    content = [part(flat(), "original"), {"type": "text", "text": "?"}]
    body = {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.json()["dfmr"]["kept_visual_tokens"] == FULL


def test_details_are_read_from_messages_with_empty_fields_too(server: Server) -> None:
    content = [part(noise(), "low"), {"type": "text", "text": "?"}]
    for empty in ({}, {"reasoning": None}, {"tools": None}, {"name": None}):
        body = {"model": "small", "messages": [{"role": "user", "content": content, **empty}], "max_tokens": 1}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        assert reply.json()["dfmr"]["kept_visual_tokens"] < FULL, empty


def test_an_image_token_in_the_text_is_text(server: Server) -> None:
    messages = message(noise(), text="What does the <image> tag do?")
    body = {"model": "small", "messages": messages, "max_tokens": 1}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.json()["dfmr"]["kept_visual_tokens"] == FULL


def test_a_stream_ends_with_the_report_and_holds_no_token_back(server: Server) -> None:
    stream = server.client.chat.completions.create(
        model="small",
        messages=message(flat()),  # type: ignore[arg-type]
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    with_report = [i for i, chunk in enumerate(chunks) if getattr(chunk, "dfmr", None)]
    assert with_report == [len(chunks) - 1]
    assert chunks[-1].usage.completion_tokens == 6  # type: ignore[union-attr]
    assert chunks[-1].dfmr["images"][0]["factor"] == 6  # type: ignore[attr-defined]


def test_the_report_of_a_stream_without_usage_rides_on_the_finishing_chunk(server: Server) -> None:
    stream = server.client.chat.completions.create(
        model="small",
        messages=message(flat()),  # type: ignore[arg-type]
        max_tokens=3,
        stream=True,
    )
    last = list(stream)[-1]
    assert last.choices[0].finish_reason
    assert last.dfmr["saved_visual_tokens"] == FULL - 16  # type: ignore[attr-defined]


async def test_many_clients_at_once_get_the_answers_they_would_get_alone(server: Server) -> None:
    pictures = [scene(i) for i in range(12)]
    alone = [ask(server, picture) for picture in pictures]
    client = server.async_client
    together = await asyncio.gather(
        *(
            client.chat.completions.create(model="small", messages=message(p), max_tokens=4, temperature=0)  # type: ignore[arg-type]
            for p in pictures
        )
    )
    for one, other in zip(alone, together, strict=True):
        assert one.choices[0].message.content == other.choices[0].message.content
        assert [i["factor"] for i in one.dfmr["images"]] == [i["factor"] for i in other.dfmr["images"]]  # type: ignore[attr-defined]


def test_a_conversation_that_resends_its_picture_does_not_encode_it_again(server: Server) -> None:
    picture = noise(99)
    assert not ask(server, picture).dfmr["images"][0]["cached"]
    missed = server.total("dfmr_cache_misses_total")  # encode calls also come from baseline pairs in the background
    assert ask(server, picture, flat()).dfmr["images"][0]["cached"]
    assert ask(server, picture).dfmr["images"][0]["cached"]
    assert server.total("dfmr_cache_misses_total") <= missed + 1


def test_text_only_requests_and_completions_work_as_ever(server: Server) -> None:
    assert ask(server).dfmr["images"] == []
    assert server.client.completions.create(model="small", prompt="hello", max_tokens=2).choices


def test_responses_take_pictures_and_report_on_them(server: Server) -> None:
    response: Any = server.client.responses.create(
        model="small",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": data_url(flat()), "detail": "low"},
                    {"type": "input_text", "text": "?"},
                ],
            }
        ],
        max_output_tokens=3,
    )
    assert response.dfmr["kept_visual_tokens"] == 16


def test_structured_output_still_constrains_the_answer(server: Server) -> None:
    response = ask(server, flat(), structured_outputs={"choice": ["yes", "no"]})
    assert response.choices[0].message.content in ("yes", "no")


def test_explain_says_what_was_decided_and_draws_it(server: Server) -> None:
    body = {"image_url": {"url": data_url(scene(5))}, "dfmr": {"tau": 1000, "factors": [1, 3]}}
    reply = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=60)
    explanation = reply.json()
    assert reply.status_code == 200
    assert (explanation["factor"], explanation["grid"], explanation["kept_visual_tokens"]) == (3, [8, 8], 64)
    rules = {c["factor"]: c["rule"] for c in explanation["candidates"]}
    assert rules == {1: "always", 2: "never", 3: "threshold", 4: "never", 6: "never"}
    assert explanation["overlay"].startswith("data:image/png;base64,")


def test_the_openapi_page_documents_our_options(server: Server) -> None:
    schema = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    assert "/v1/dfmr/explain" in schema["paths"]
    request = schema["components"]["schemas"]["DfmrChatCompletionRequest"]["properties"]
    assert "dfmr" in request
    assert set(schema["components"]["schemas"]["DfmrOptions"]["properties"]) == {
        "profile",
        "enabled",
        "tau",
        "factors",
        "max_tokens_per_image",
        "max_visual_tokens",
        "fit_context",
        "mode",
        "protect",
        "video",
        "method",
    }


def test_as_many_pictures_as_are_allowed_fit_where_uncompressed_ones_would_not(server: Server) -> None:
    assert MAX_IMAGES * FULL < MAX_MODEL_LEN
    response = ask(server, *[flat(colour=(i, i, i)) for i in range(MAX_IMAGES)])
    assert response.dfmr["kept_visual_tokens"] == MAX_IMAGES * 16


def test_streamed_events_are_valid_json_lines(server: Server) -> None:
    body = {"model": "small", "messages": message(flat()), "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as reply:
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert reply.headers["x-dfmr-visual-tokens-kept"] == "16"
    assert events[-1] == "[DONE]"
    assert ["dfmr" in json.loads(event) for event in events[:-1]] == [False] * (len(events) - 2) + [True]
