"""Profiles chosen per request and per API key, and a profiles file that is read again while the server runs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pictures import message, noise, scene
from serving import KEY, PROFILES, PROFILES_TEXT, Server

pytestmark = pytest.mark.engine
CHANGED = PROFILES_TEXT.replace("tau: 0", "max_tokens_per_image: 144") + "\n"


def ask(server: Server, *pictures: Any, key: str = "none", model: str = "small", **dfmr: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    return client.chat.completions.create(
        model=model,
        messages=message(*pictures),  # type: ignore[arg-type]
        max_tokens=1,
        extra_body={"dfmr": dfmr},
    ).dfmr  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def file(server: Server) -> Iterator[Path]:
    """The server's profiles file, in the end as it was."""
    path = server.model.parent / PROFILES
    yield path
    assert server.reload_profiles(PROFILES_TEXT).status_code == 200


def listing(server: Server, key: str = "none") -> Any:
    reply = httpx.get(f"{server.url}/v1/dfmr/profiles", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    return reply.json()


def test_a_request_or_its_key_names_the_profile_and_its_own_fields_come_first(server: Server) -> None:
    picture = noise(301)
    for dfmr, key, name, kept in (
        ({"profile": "archive"}, "none", "archive", 36),
        ({"profile": "inspection"}, "none", "inspection", 576),
        ({}, KEY, "archive", 36),
        ({"profile": "inspection"}, KEY, "inspection", 576),
        ({"profile": "inspection", "max_tokens_per_image": 144}, KEY, "inspection", 144),
        ({"profile": "default", "factors": [1]}, KEY, "default", 576),
    ):
        report = ask(server, picture, key=key, **dfmr)
        assert (report["profile"], report["kept_visual_tokens"]) == (name, kept)


def test_savings_are_counted_by_profile(server: Server) -> None:
    before = server.total("dfmr_visual_tokens_total", profile="archive", stage="kept")
    images = server.total("dfmr_images_total", profile="archive")
    report = ask(server, scene(7), scene(8), profile="archive")
    assert (
        server.total("dfmr_visual_tokens_total", profile="archive", stage="kept") - before
        == (report["kept_visual_tokens"])
    )
    assert server.total("dfmr_images_total", profile="archive") - images == 2


def test_a_key_has_its_profile_on_vllms_other_routes_too(server: Server) -> None:
    before = server.total("dfmr_visual_tokens_total", profile="archive", stage="kept")
    body: dict[str, Any] = {"model": "small", "messages": [message(noise(303))], "max_tokens": 1}
    url, headers = f"{server.url}/v1/chat/completions/batch", {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(url, json=body, headers=headers, timeout=120).status_code == 200
    assert server.total("dfmr_visual_tokens_total", profile="archive", stage="kept") - before == 36
    refused = httpx.post(url, json={**body, "dfmr": {"enabled": False}}, headers=headers, timeout=120)
    assert refused.status_code == 400
    assert "dfmr" in refused.text


def test_a_profile_that_there_is_not_is_a_400_that_lists_those_that_there_are(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="no profile 'fast'; there are archive, default, inspection"):
        ask(server, noise(302), profile="fast")
    assert not [key for key in server.metrics() if 'profile="fast"' in key]


def test_explain_follows_the_profile(server: Server) -> None:
    from pictures import data_url

    body = {"image_url": {"url": data_url(scene(3))}, "dfmr": {"profile": "archive"}, "overlay": False}
    explanation = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=60).json()
    assert (explanation["profile"], explanation["kept_visual_tokens"] <= 36) == ("archive", True)


def test_the_profiles_are_listed_without_the_keys(server: Server) -> None:
    found = listing(server)
    assert [p["name"] for p in found["profiles"]] == ["default", "inspection", "archive"]
    assert (found["server"], found["yours"], found["keys"], found["rejected"]) == ("default", "default", 1, None)
    assert listing(server, KEY)["yours"] == "archive"
    assert found["profiles"][2]["policy"]["max_tokens_per_image"] == 36


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CHANGED.replace("archive: {policy", "archive: {polciy"), "profiles.archive.polciy"),
        (CHANGED.replace("[4, 6]", "[4, 8], tau: 1"), "pooling factor 8 is not measured"),
        (CHANGED.replace("[4, 6]", "[4, 6"), "line "),
    ],
)
def test_a_bad_file_is_a_400_and_leaves_the_old_profiles_in_force(
    server: Server, file: Path, text: str, said: str
) -> None:
    file.write_text(text)
    reply = server.reload_profiles()
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert said in listing(server)["rejected"]
    assert ask(server, noise(303), profile="inspection")["kept_visual_tokens"] == 576


def test_a_good_file_is_in_force_at_once(server: Server, file: Path) -> None:
    file.write_text(CHANGED)
    assert server.reload_profiles().json()["rejected"] is None
    assert ask(server, noise(303), profile="inspection")["kept_visual_tokens"] == 144


def test_sighup_reads_the_file_again(server: Server, file: Path) -> None:
    file.write_text(CHANGED.replace("inspection", "gauges"))
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: "gauges" in [p["name"] for p in listing(server)["profiles"]])
    assert ask(server, noise(303), profile="gauges")["kept_visual_tokens"] == 144


def test_every_api_process_takes_a_changed_file_up(siglip_server: Server) -> None:
    """The process that is signalled is their parent, which serves no requests and must outlive the signal."""
    path = siglip_server.model.parent / PROFILES
    path.write_text(CHANGED.replace("inspection", "gauges").replace("144", "196"))  # of 27 x 27 tokens, at factor 2
    os.kill(siglip_server.process.pid, signal.SIGHUP)
    # Each look is a new connection, which either process may take.
    wait_until(lambda: all("gauges" in str(listing(siglip_server)) for _ in range(16)))
    assert ask(siglip_server, noise(304), model="siglip", profile="gauges")["profile"] == "gauges"
    assert siglip_server.process.poll() is None
