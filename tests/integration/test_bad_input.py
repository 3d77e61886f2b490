"""Bad input gets a clear 4xx that says what was wrong, and the engine keeps serving."""

import asyncio
import base64
import random
from typing import Any

import httpx
import pytest
from pictures import bytes_url, data_url, encoded, flat, message, part, scene
from PIL import Image
from serving import MAX_IMAGES, Server

pytestmark = pytest.mark.engine


def post(server: Server, messages: list[dict[str, Any]], **extra: Any) -> httpx.Response:
    body = {"model": "small", "messages": messages, "max_tokens": 1, **extra}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def refused(reply: httpx.Response) -> dict[str, Any]:
    """The error object of a 400, as OpenAI's clients expect it."""
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() >= {"message", "type", "code", "param"}
    assert error["code"] == 400
    return error


TRUNCATED = bytes_url(encoded(scene(1))[:200])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,aGVsbG8=", "not a picture"),
        (TRUNCATED, "truncated"),
        ("data:image/png;base64,", "not a picture"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png", "separator"),
        ("ftp://example.invalid/x.png", "HTTP, data or file URL"),
        ("file:///etc/hostname", "--allowed-local-media-path"),
        ("http://127.0.0.1:9/x.png", "connect"),
    ],
)
def test_an_unreadable_picture_is_named_by_its_index(server: Server, url: str, says: str) -> None:
    error = refused(post(server, message(flat(), url)))
    assert error["message"].startswith("image 1: ")
    assert says in error["message"]
    assert error["param"] == "image[1]"


def test_the_index_counts_over_all_messages(server: Server) -> None:
    history = message(flat(), scene(1), text="first")
    history += [{"role": "assistant", "content": "ok"}, *message(scene(2), TRUNCATED, text="second")]
    assert refused(post(server, history))["param"] == "image[3]"


def test_an_oversized_picture_is_refused_before_it_is_decoded(server: Server) -> None:
    huge = encoded(Image.new("1", (20000, 10000)))
    error = refused(post(server, message(bytes_url(huge))))
    assert error["param"] == "image[0]"
    # PIL's limit and vLLM's are the same number; whichever looks first, both say it and the picture's own size.
    assert "200000000 pixels" in error["message"]
    assert "178956970 pixels" in error["message"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tao": 1}, "dfmr.tao"),
        ({"tau": -1}, "dfmr.tau"),
        ({"tau": "high"}, "dfmr.tau"),
        ({"factors": []}, "dfmr.factors"),
        ({"factors": [0]}, "dfmr.factors"),
        ({"factors": [1, 5]}, "5 is not offered; this server offers 1, 2, 3, 4, 6"),
        ({"tau": {"5": 1.0}}, "5 is not offered"),
        ({"tau": {"2": 1.0}}, "tau has no threshold for factor"),
        ({"max_tokens_per_image": 0}, "dfmr.max_tokens_per_image"),
        ({"max_tokens_per_image": 5}, "the fewest possible is 16"),
        ("yes", "dfmr"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(server: Server, options: Any, says: str) -> None:
    assert says in refused(post(server, message(scene(1)), dfmr=options))["message"]


def test_an_unknown_detail_is_named(server: Server) -> None:
    content = [part(flat()), part(flat(), "ultra"), {"type": "text", "text": "?"}]
    assert "image 1: detail must be" in refused(post(server, [{"role": "user", "content": content}]))["message"]


def test_too_many_pictures_are_refused_with_the_limit(server: Server) -> None:
    error = refused(post(server, message(*[flat()] * (MAX_IMAGES + 1))))
    assert str(MAX_IMAGES) in error["message"]


def test_a_prompt_that_is_too_long_even_compressed_is_refused_with_the_sums(server: Server) -> None:
    error = refused(post(server, message(*[scene(3)] * MAX_IMAGES, text="word " * 1500), dfmr={"enabled": False}))
    assert "too long even compressed" in error["message"]
    assert "7488 of them visual" in error["message"]
    assert "8192" in error["message"]


@pytest.mark.parametrize("kind", ["image_embeds", "video_url"])
def test_clients_cannot_send_what_the_operator_did_not_allow(server: Server, kind: str) -> None:
    value = base64.b64encode(b"\x93NUMPY").decode() if kind == "image_embeds" else {"url": "data:video/mp4;base64,AAAA"}
    content = [{"type": kind, kind: value}, {"type": "text", "text": "?"}]
    refused(post(server, [{"role": "user", "content": content}]))


async def test_two_hundred_broken_pictures_leave_the_server_serving(server: Server) -> None:
    dice = random.Random(7)
    originals = [
        encoded(scene(i % 8), file_format)
        for i in range(200)
        for file_format in (dice.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),)
    ]
    limit = asyncio.Semaphore(8)

    async def send(client: httpx.AsyncClient, data: bytes) -> httpx.Response:
        body = {"model": "small", "messages": message(flat(), bytes_url(broken(data, dice))), "max_tokens": 1}
        async with limit:
            return await client.post(f"{server.url}/v1/chat/completions", json=body)

    async with httpx.AsyncClient(timeout=300) as client:
        replies = await asyncio.gather(*(send(client, data) for data in originals))
    assert {reply.status_code for reply in replies} <= {200, 400}
    errors = [refused(reply) for reply in replies if reply.status_code == 400]
    assert len(errors) > 100
    assert all(error["param"] == "image[1]" for error in errors)
    good = post(server, message(data_url(flat())))
    assert good.status_code == 200
    assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200


def broken(data: bytes, dice: random.Random) -> bytes:
    """Cut, flip or scramble a picture file; some readers still make something of it, and then it is served."""
    damage = dice.randrange(4)
    if damage == 0:
        return data[: dice.randrange(len(data))]
    if damage == 1:
        return bytes(dice.randrange(256) for _ in range(len(data) // 4))
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 60)):
        changed[dice.randrange(12 if damage == 2 else len(changed))] = dice.randrange(256)
    return bytes(changed)
