"""Requests get less detail while the engine's KV cache is fuller than a mark, and all of it again afterwards.

The cache of the test server holds half a million tokens; the marks are set so that one full context passes them, and
the single pictures of these tests and of measurements in the background do not.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pictures import message, noise
from replicas import wait_until
from serving import PROFILES_TEXT, Server

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("own_profiles")]
PRESSED = PROFILES_TEXT.replace(
    "profiles:\n",
    """profiles:
  pressed:
    policy: {factors: [1, 2, 4], tau: 0}
    pressure:
      {high: 0.008, low: 0.004, hold_seconds: 0, calm_seconds: 0,
       steps: [{max_tokens_per_image: 144}, {max_tokens_per_image: 1}]}
""",
)


@contextmanager
def full_cache(server: Server) -> Iterator[None]:
    """Two long answers at any time, each followed by another, so that the cache is full for as long as it takes."""
    done = threading.Event()

    def answers(first: int) -> None:
        with server.client as client:
            while not done.is_set():
                with client.chat.completions.create(
                    model="small",
                    messages=message(*[noise(first + i) for i in range(8)]),  # type: ignore[arg-type]
                    stream=True,
                    extra_body={"ignore_eos": True, "dfmr": {"enabled": False}},
                ) as answer:
                    for _ in answer:
                        if done.is_set():
                            break

    threads = [threading.Thread(target=answers, args=(first,)) for first in (400, 500)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def kept(server: Server) -> int:
    reply = server.client.chat.completions.create(
        model="small",
        messages=message(noise(77)),  # type: ignore[arg-type]
        max_tokens=1,
        extra_body={"dfmr": {"profile": "pressed"}},
    )
    tokens: int = reply.dfmr["kept_visual_tokens"]  # type: ignore[attr-defined]
    return tokens


def level(server: Server) -> float:
    return server.total("dfmr_pressure_level", profile="pressed")


def kept_at_level_2(server: Server) -> int | None:
    """None where the level was another before the request or after it."""
    if level(server) != 2:
        return None
    tokens = kept(server)
    if level(server) != 2:
        return None
    assert tokens == 36
    return tokens


def test_detail_is_given_up_while_the_cache_is_full_and_given_back(server: Server) -> None:
    assert server.reload_profiles(PRESSED).status_code == 200
    wait_until(lambda: kept(server) == 576, "every token kept", 120)
    with full_cache(server):
        wait_until(lambda: level(server) == 2, "the lowest ceiling", 120)
        # One token is less than any pooling of this profile keeps: the picture is not refused, but pooled furthest.
        wait_until(lambda: kept_at_level_2(server) == 36, "the furthest pooling", 120)
    wait_until(lambda: level(server) == 0, "no ceiling", 120)
    wait_until(lambda: kept(server) == 576, "every token kept", 120)
