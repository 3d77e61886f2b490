"""Reading a profiles file again: all of it is in force, or none."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from test_profiles_format import ENCODER

from server.policy import Policy, ServerSettings
from server.profiles import store as store_module
from server.profiles.book import ProfileBook
from server.profiles.store import ProfileStore

FIRST = "profiles: {a: {policy: {tau: 0.1}}}"
SECOND = "profiles: {a: {policy: {tau: 0.2}}, b: {}}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.yaml"
    path.write_text(FIRST)
    return path


def store_of(path: Path) -> ProfileStore:
    return ProfileStore(ServerSettings(policy=Policy(factors=(1, 2)), profiles=str(path)), None, "c")


async def until(store: ProfileStore, name: str) -> None:
    async with asyncio.timeout(20):
        while name not in store.book.entries:
            await asyncio.sleep(0.01)


async def test_a_new_file_is_in_force_whole_and_listeners_hear_of_it(path: Path) -> None:
    store = store_of(path)
    heard: list[ProfileBook] = []
    store.subscribe(heard.append)
    path.write_text(SECOND)
    assert store.book.entries["a"].policy.tau == 0.1
    await store.reload()
    assert (store.book.entries["a"].policy.tau, list(store.book.entries)) == (0.2, ["default", "a", "b"])
    assert [list(book.entries) for book in heard] == [["default", "a"], ["default", "a", "b"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profiles: {a: {policy: {tau: 0.2}}, b: {policy: {tau: -1}}}", "profile b: tau"),
        ("profiles: {a: {policy: {tau: 0.2, factors: [1, 2, 4]}}}", "factor 4 is not measured"),
        ("profiles: {", "line 1"),
    ],
)
async def test_a_bad_file_leaves_the_old_one_in_force_and_says_why(path: Path, text: str, said: str) -> None:
    store = store_of(path)
    before = store.book
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        await store.reload()
    assert store.book is before
    assert said in str(store.rejected)
    path.write_text(SECOND)
    await store.reload()
    assert store.rejected is None


def test_a_bad_file_is_not_started_with(path: Path) -> None:
    path.write_text("profiles: {a: {policy: {tau: -1}}}")
    with pytest.raises(ValueError, match="profile a: tau"):
        store_of(path)


async def test_the_file_is_watched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "POLL_SECONDS", 0.01)
    store = store_of(path)
    store.start()
    path.write_text("profiles: {")
    async with asyncio.timeout(20):
        while store.rejected is None:
            await asyncio.sleep(0.01)
    assert list(store.book.entries) == ["default", "a"]
    path.write_text(SECOND)
    await until(store, "b")


async def test_a_file_put_in_its_place_is_noticed_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As editors save, and as Kubernetes exchanges a mounted ConfigMap."""
    monkeypatch.setattr(store_module, "POLL_SECONDS", 0.01)
    store = store_of(path)
    store.start()
    other = path.with_suffix(".new")
    other.write_text(SECOND)
    other.replace(path)
    await until(store, "b")


async def test_sighup_reads_it_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "POLL_SECONDS", 3600)
    store = store_of(path)
    store.start()
    try:
        path.write_text(SECOND)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(store, "b")
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_many_reloads_at_once_end_with_the_file_as_it_is(path: Path) -> None:
    store = store_of(path)
    path.write_text(SECOND)
    await asyncio.gather(*(store.reload() for _ in range(8)))
    assert "b" in store.book.entries


def test_the_encoder_is_checked_once_it_is_known(path: Path) -> None:
    store = store_of(path)
    store.know_encoder(ENCODER)
