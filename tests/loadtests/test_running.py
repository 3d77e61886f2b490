"""Both drivers and the matrix against a small streaming server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from streaming_endpoint import StreamingEndpoint

import loadtests.__main__
from loadtests import application, models, scenarios, targets
from loadtests.application import Plan
from loadtests.matrix import ALONE, Runner
from loadtests.pictures import Gallery
from loadtests.results import Results
from loadtests.servers import Server, attached
from loadtests.soak import MIX, USERS, judge

MATRIX = scenarios.load()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One that pools and one that does not; 25 microseconds for each token of a prompt."""
    folder = tmp_path_factory.mktemp("tiny")
    models.write(folder, models.SHAPES["tiny"])
    kinds = {"dfmr": True, "one-phase": False}
    endpoints = {kind: StreamingEndpoint(pools, 25e-6) for kind, pools in kinds.items()}
    yield {kind: attached(e.url, kind, str(folder)) for kind, e in endpoints.items()}  # type: ignore[arg-type]
    for endpoint in endpoints.values():
        endpoint.close()


def runner(servers: dict[str, Server], folder: Path) -> tuple[Runner, list[str]]:
    told: list[str] = []
    return Runner(MATRIX, "short", servers, folder, told.append), told


def scenario(**fields: object) -> scenarios.Scenario:
    return scenarios.Scenario.model_validate({"name": "x", "model": "tiny", **fields})


def test_policies_take_turns_and_send_what_they_say(servers: dict[str, Server], tmp_path: Path) -> None:
    run, told = runner(servers, tmp_path)
    policies = ["one-phase", "uncompressed", "dfmr", "text-only"]
    wanted = scenario(
        pictures=4, kinds=["flat"], concurrency=2, requests=[4, 4], rounds=[2, 2], policies=policies, text=32
    )
    cells = {cell.policy: cell for cell in run.run(wanted)}
    assert [line.split("| ")[2].split(" ")[0] for line in told] == policies + policies[::-1]
    assert all(cell.failed == 0 and cell.requests == 8 and len(cell.rounds) == 2 for cell in cells.values())
    assert cells["uncompressed"].kept == 1
    assert cells["dfmr"].kept == (624 + 448) / 2 / 2304
    assert cells["dfmr"].prompt_tokens == 32 + 536
    assert cells["text-only"].prompt_tokens == 32 + 536 + 4
    assert cells["dfmr"].ttft.p50 < 0.7 * cells["one-phase"].ttft.p50  # type: ignore[operator]


def test_arrivals_follow_the_capacity_that_was_measured(servers: dict[str, Server], tmp_path: Path) -> None:
    run, told = runner(servers, tmp_path)
    wanted = scenario(kinds=["flat"], rates=[0.2, 0.4], requests=[4, 4], policies=["one-phase"])
    low, high = run.run(wanted)
    assert told[0].startswith("capacity, one-phase")
    assert high.rate == pytest.approx(2 * low.rate)  # type: ignore[operator]
    assert [cell.variant for cell in (low, high)] == ["0.2 x capacity", "0.4 x capacity"]


def test_a_second_stream_runs_beside_the_measured_one(servers: dict[str, Server], tmp_path: Path) -> None:
    run, _ = runner(servers, tmp_path)
    beside = {"pictures": 2, "output": 1, "load": 0.5, "requests": [3, 3]}
    wanted = scenario(kinds=["flat"], concurrency=1, requests=[5, 5], beside=beside, alone=True, policies=["fixed"])
    alone, both = run.run(wanted)
    assert (alone.variant, both.variant) == (ALONE, "")
    assert alone.requests == both.requests == 5


def test_vllms_own_random_pictures_are_sent_and_never_twice(servers: dict[str, Server], tmp_path: Path) -> None:
    run, _ = runner(servers, tmp_path)
    before = servers["dfmr"].metrics().total("distinct_pictures")
    wanted = scenario(
        pictures=2, dataset="random-mm", concurrency=2, requests=[3, 3], rounds=[2, 2], policies=["uncompressed"]
    )
    (cell,) = run.run(wanted)
    # A picture of the round's first request, which wakes the server, beside those that are measured.
    assert servers["dfmr"].metrics().total("distinct_pictures") - before == 2 * (1 + 3 * 2)
    assert (cell.failed, cell.kept) == (0, 1)
    assert cell.images_per_second > 0


def test_a_run_that_goes_on_asks_nothing_twice_and_is_told_as_one(
    servers: dict[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadtests.__main__, "WORK", tmp_path / "work")
    monkeypatch.setattr("loadtests.__main__.signal.signal", lambda *_: None)
    command = ["bench", "--only", "noise", "flat pictures", "--url", servers["dfmr"].url, "--out", str(tmp_path)]

    def bench(*options: str) -> tuple[Results, float]:
        monkeypatch.setattr("sys.argv", ["loadtests", *command, *options])
        with pytest.raises(SystemExit, match="0"):
            loadtests.__main__.main()
        found = Results.model_validate_json((tmp_path / "bench-short.json").read_text())
        return found, servers["dfmr"].metrics().total("distinct_pictures")

    _, first = bench()
    (tmp_path / "work" / "short" / "noise.json").unlink()
    half, second = bench("--resume")
    whole, third = bench("--resume")
    assert first < second == third
    assert [cell.scenario for cell in whole.cells] == ["flat pictures", "noise"]
    assert (half.run["resumed"], whole.run["resumed"]) == (1, 2)
    assert half.run["started"] == whole.run["started"]
    assert 0 < half.run["minutes"] <= whole.run["minutes"]
    monkeypatch.setattr("sys.argv", ["loadtests", *command, "--model", "1b", "--resume"])
    with pytest.raises(SystemExit, match="no run with these options"):
        loadtests.__main__.main()


def test_a_server_that_refuses_everything_stops_the_run(servers: dict[str, Server], tmp_path: Path) -> None:
    broken = {"dfmr": Server(servers["one-phase"].url + "/nowhere", "dfmr", "m", servers["dfmr"].tokenizer)}
    broken["dfmr"].metrics = servers["dfmr"].metrics  # type: ignore[method-assign]
    run, _ = runner(broken, tmp_path)
    wanted = scenario(kinds=["flat"], concurrency=1, requests=[2, 2], policies=["uncompressed"])
    with pytest.raises(RuntimeError, match="every request failed"):
        run.run(wanted)


def test_users_behave_like_an_application(servers: dict[str, Server], tmp_path: Path) -> None:
    plan = Plan(seconds=4, users={"Application": 2}, pictures=6)
    found = application.run(servers["dfmr"], MATRIX.policies["dfmr"], plan, Gallery(0), tmp_path)
    assert found.ledger.surprises == []
    assert found.ledger.kept < found.ledger.original
    assert any(answer.follow_up for answer in found.ledger.answers)
    assert found.run.grown("distinct_pictures") > plan.pictures, "every upload is a new file"
    assert all(answer.output_tokens == 12 for answer in found.ledger.answers)
    assert found.run.grown("dfmr_visual_tokens_total", stage="kept") == found.ledger.kept


def test_chaos_is_accounted_for_to_the_token(servers: dict[str, Server], tmp_path: Path) -> None:
    before = servers["dfmr"].metrics()
    plan = Plan(seconds=10, users=USERS, rate=30, pictures=12, again=True)
    found = application.run(servers["dfmr"], MIX, plan, Gallery(1), tmp_path)
    outcomes = found.ledger.outcomes
    assert {"answered", "left", "hasty", "refused", "slow"} <= outcomes.keys(), outcomes
    verdicts = judge(found.ledger, before, servers["dfmr"].metrics(), [], 1, True)
    assert [t.name for t in verdicts if not t.passed] == [], (found.ledger.surprises, verdicts)


def test_what_was_not_measured_is_not_met() -> None:
    found = targets.check(Results(run={}))
    assert len(found) >= 12
    assert not any(target.passed for target in found)
