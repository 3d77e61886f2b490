"""The whole matrix against an endpoint whose right answers are known beforehand."""

from collections import Counter
from pathlib import Path

import pytest
from fake_endpoint import TOKENS, FakeEndpoint

from evals import targets
from evals.client import Endpoint, NotOfferedError, RequestFailedError
from evals.items import Item
from evals.measure import Measurement, _dealt, measure
from evals.policies import Policy, matrix
from evals.results import Comparison, Results
from evals.runner import Asking
from evals.scoring import exact
from evals.store import Row, Store, read_rows
from evals.summary import Graded, comparisons, summarise, tokens_per_picture

ASKING = Asking(max_tokens=4, concurrency=4)


async def run(
    fake: FakeEndpoint, items: list[Item], folder: Path, *names: str
) -> tuple[Measurement, Store, list[Policy], dict[str, Graded]]:
    endpoint = Endpoint(fake.url, retries=0)
    await endpoint.connect()
    policies = matrix(names)
    store = Store(folder, {"digest": "x"})
    made = await measure(endpoint, items, policies, store, ASKING, lambda: items)
    await endpoint.close()
    store.close()
    graded = {p.name: Graded(items, store.rows(p.name), exact) for p in policies if p.name not in made.refused}
    return made, store, policies, graded


async def test_controls_spend_what_dfmr_spent(fake: FakeEndpoint, items: list[Item], tmp_path: Path) -> None:
    fake.methods = ("drop-cls", "drop-random")
    controls = ["fixed", "random", "downscaled", "drop-cls", "drop-random"]
    made, store, policies, graded = await run(fake, items, tmp_path, "full", "dfmr", *controls)
    assert made.refused == {}
    compared = {c.control: c for c in comparisons(policies, graded)}
    assert set(compared) == {f"{control}@dfmr" for control in controls}
    dfmr = summarise(policies[1], graded["dfmr"], graded["full"])
    assert dfmr.visual_tokens is not None
    for comparison in compared.values():
        # Thirty questions can be matched to within a few tokens only.
        assert comparison.control_tokens == pytest.approx(dfmr.visual_tokens, rel=0.08)
    single = {item.id for item in items if len(item.pictures) == 1}
    histograms = [
        Counter(row.factors[0] for row in store.rows(name).values() if row.id in single)
        for name in ("dfmr", "random@dfmr")
    ]
    assert histograms[0] == histograms[1]


async def test_figures_of_a_known_model(fake: FakeEndpoint, items: list[Item], tmp_path: Path) -> None:
    _, _, policies, graded = await run(fake, items, tmp_path, "full", "dfmr")
    full, dfmr = (summarise(policy, graded[policy.name], graded["full"]) for policy in policies)
    assert full.accuracy is not None
    assert (full.accuracy.value, full.visual_tokens, full.share) == (1.0, 576.0, 1.0)
    # Rich pictures keep every token, simple ones lose nothing, the blind spot is pooled by 3 and more and lost.
    values = {kind: found.accuracy.value for kind, found in dfmr.kinds.items()}
    assert values == {"simple": 1.0, "rich": 1.0, "blind spot": 0.0}
    assert dfmr.minus_full is not None
    assert dfmr.minus_full.value == pytest.approx(-1 / 3)
    assert dfmr.minus_full.high < 0
    assert dfmr.kinds["rich"].visual_tokens == 576
    assert dfmr.ttft_p50 is not None
    assert dfmr.errors == 0


async def test_a_token_target_is_met_and_not_by_more_than_needed(
    fake: FakeEndpoint, items: list[Item], tmp_path: Path
) -> None:
    made, _, policies, graded = await run(fake, items, tmp_path, "dfmr@40%")
    found = summarise(policies[0], graded["dfmr@40%"], None)
    assert made.scales["dfmr@40%"] > 0
    assert found.share is not None
    assert 0.34 < found.share <= 0.40


async def test_what_the_endpoint_refuses_is_reported_not_measured(
    fake: FakeEndpoint, items: list[Item], tmp_path: Path
) -> None:
    made, store, _, _ = await run(fake, items, tmp_path, "full", "dfmr", "drop-cls", "fixed")
    assert made.refused == {"drop-cls@dfmr": "refused: dfmr.method: extra inputs are not permitted"}
    assert store.rows("drop-cls@dfmr") == {}
    assert len(store.rows("fixed@dfmr")) == len(items)


async def test_any_other_openai_endpoint_is_measured_uncompressed(
    fake: FakeEndpoint, items: list[Item], tmp_path: Path
) -> None:
    fake.dfmr = False
    made, _, policies, graded = await run(fake, items, tmp_path, "full", "dfmr", "fixed", "downscaled@2")
    assert made.refused == {
        "dfmr": "the endpoint knows no dfmr object",
        "fixed@dfmr": "dfmr was not measured",
    }
    assert all("dfmr" not in request for request in fake.requests)
    full = summarise(policies[0], graded["full"], None)
    assert full.visual_tokens is None
    assert full.prompt_tokens == 20


async def test_failed_requests_count_as_wrong_and_are_asked_again(
    fake: FakeEndpoint, items: list[Item], tmp_path: Path
) -> None:
    fake.failing = "Which 7?"
    _, _, policies, graded = await run(fake, items, tmp_path, "full")
    found = summarise(policies[0], graded["full"], None)
    assert found.errors == 1
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(29 / 30)
    fake.failing = None
    asked = len(fake.requests)
    _, _, policies, graded = await run(fake, items, tmp_path, "full")
    # One probe of the policy, and the one question that had failed.
    assert len(fake.requests) - asked == 2
    assert summarise(policies[0], graded["full"], None).errors == 0


async def test_an_interrupted_run_goes_on_where_it_was(fake: FakeEndpoint, items: list[Item], tmp_path: Path) -> None:
    await run(fake, items, tmp_path, "full", "dfmr")
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:45]) + "\n" + lines[45][:20])
    asked = len(fake.requests)
    _, _, _, graded = await run(fake, items, tmp_path, "full", "dfmr")
    assert len(fake.requests) - asked == 2 + 15
    assert all(len(found.rows) == 30 for found in graded.values())
    asked = len(fake.requests)
    await run(fake, items, tmp_path, "full", "dfmr")
    assert len(fake.requests) - asked == 2


async def test_a_control_is_asked_anew_where_what_it_sends_has_changed(
    fake: FakeEndpoint, items: list[Item], tmp_path: Path
) -> None:
    await run(fake, items, tmp_path, "dfmr", "fixed")
    rows = (
        (tmp_path / "answers.jsonl")
        .read_text()
        .replace('"dfmr":{"enabled":true,"factors":[2]}', '"dfmr":{"enabled":true,"factors":[9]}')
    )
    (tmp_path / "answers.jsonl").write_text(rows)
    _, store, _, _ = await run(fake, items, tmp_path, "dfmr", "fixed")
    sent = [row.dfmr["factors"][0] for row in store.rows("fixed@dfmr").values() if row.dfmr]
    assert set(sent) <= set(TOKENS)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, {"model": "a", "seed": 1}).close()
    Store(tmp_path, {"model": "a", "seed": 1}).close()
    with pytest.raises(ValueError, match="seed differ"):
        Store(tmp_path, {"model": "a", "seed": 2})


async def test_no_endpoint_is_one_clear_error() -> None:
    with pytest.raises(RequestFailedError, match=r"127\.0\.0\.1:9"):
        await Endpoint("http://127.0.0.1:9/v1", retries=0).connect()


def test_sets_of_questions_count_only_together() -> None:
    rows = {"a": "1", "b": "1", "c": "1", "d": "0"}
    items = [
        Item(id=name, pictures=("x.png",), question="?", answers=("1",), all_of="p" if name in "ab" else "q")
        for name in rows
    ]
    graded = Graded(items, {name: Row(policy="p", id=name, answer=text) for name, text in rows.items()}, exact)
    assert graded.scores == {"all of p": 1.0, "all of q": 0.0}


def test_comparisons_say_whether_tokens_are_equal() -> None:
    items = [Item(id="a", pictures=("x.png",), question="?", answers=("1",))]
    spent = {"dfmr": 100, "fixed@dfmr": 101, "random@dfmr": 102}
    graded = {
        name: Graded(items, {"a": Row(policy=name, id="a", answer="1", kept=kept)}, exact)
        for name, kept in spent.items()
    }
    found: list[Comparison] = comparisons(matrix(["dfmr", "fixed", "random"]), graded)
    assert [comparison.matched for comparison in found] == [True, False]


def test_a_control_whose_requests_failed_is_not_beaten() -> None:
    items = [Item(id=name, pictures=("x.png",), question="?", answers=("1",)) for name in "ab"]
    rows = {name: Row(policy="dfmr", id=name, answer="1", kept=100) for name in "ab"}
    failed = {**rows, "b": Row(policy="fixed@dfmr", id="b", error="HTTP 503")}
    for theirs, errors in ((rows, 0), (failed, 1)):
        graded = {"dfmr": Graded(items, rows, exact), "fixed@dfmr": Graded(items, theirs, exact)}
        found = comparisons(matrix(["dfmr", "fixed"]), graded)
        assert [comparison.errors for comparison in found] == [errors]
        (target,) = (
            t
            for t in targets.check(Results(run={}, policies=[], comparisons=found), "dfmr", "yours")
            if "minus fixed" in t.name
        )
        assert (target.measured is None) == (errors > 0)


def test_answers_may_hold_any_character(tmp_path: Path) -> None:
    rows = [Row(policy="p", id=str(i), answer=text) for i, text in enumerate(["a\u2028b", "a\u0085b", "a\nb"])]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert read_rows(path) == rows


def test_regions_have_no_factor_to_deal_out() -> None:
    assert _dealt(Row(policy="dfmr", id="a", factors=[2, 4])) == [2, 4]
    with pytest.raises(NotOfferedError, match="regions"):
        _dealt(Row(policy="dfmr", id="a", factors=[2, None]))


def test_tokens_are_per_picture_also_where_only_usage_tells_them() -> None:
    rows = [Row(policy="p", id="a", kept=100, pictures=2), Row(policy="p", id="b", kept=20), Row(policy="p", id="c")]
    assert tokens_per_picture(rows) == 40
    assert tokens_per_picture(rows[2:]) is None
