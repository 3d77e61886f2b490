import pytest
from fake_endpoint import TAUS, TOKENS

from evals.conditions import Change
from evals.items import Item
from evals.policies import Offer, Plan, matrix, parse, plans

OFFER = Offer(TOKENS, 576, TAUS)


def names(*given: str) -> list[str]:
    return [policy.name for policy in matrix(given)]


def test_bare_controls_become_one_for_each_dfmr_policy() -> None:
    assert names("full", "fixed", "dfmr@25%", "dfmr@0.5") == [
        "full", "dfmr@25%", "dfmr@0.5", "fixed@dfmr@25%", "fixed@dfmr@0.5",
    ]  # fmt: skip


def test_a_controls_dfmr_policy_joins_and_runs_first() -> None:
    assert names("random@dfmr@x0.5", "full") == ["full", "dfmr@x0.5", "random@dfmr@x0.5"]


def test_repeated_policies_run_once() -> None:
    assert names("dfmr", "dfmr", "fixed@dfmr", "fixed") == ["dfmr", "fixed@dfmr"]


@pytest.mark.parametrize(
    "name",
    ["ful", "dfmr@", "dfmr@x", "dfmr@-1", "dfmr@nan%", "fixed@0", "fixed@two", "random@3", "fixed@dfmr@x", "full@2"],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="policy"):
        parse(name)


def test_a_bare_control_needs_a_dfmr_policy() -> None:
    with pytest.raises(ValueError, match="fixed@dfmr"):
        matrix(["full", "fixed"])


def body(name: str, items: list[Item], **options: float) -> Plan:
    (plan,) = plans(parse(name), items[:1], OFFER, **options).values()  # type: ignore[arg-type]
    return plan


def test_what_each_name_sends(items: list[Item]) -> None:
    assert body("full", items) == Plan({"enabled": False})
    assert body("dfmr", items) == Plan({"enabled": True})
    assert body("dfmr@0.5", items) == Plan({"enabled": True, "tau": 0.5})
    assert body("dfmr@x0.5", items) == Plan({"enabled": True, "tau": {"2": 0.25, "3": 0.2, "4": 0.1}})
    assert body("dfmr@25%", items, scale=2) == Plan({"enabled": True, "tau": {"2": 1.0, "3": 0.8, "4": 0.4}})
    assert body("fixed@3", items) == Plan({"enabled": True, "factors": [3]})
    assert body("downscaled@3", items) == Plan({"enabled": True, "factors": [3]}, Change("downscale", 3))
    assert body("drop-cls@2", items) == Plan({"enabled": True, "factors": [2], "method": "drop-cls"})
    assert body("drop-random@2", items) == Plan({"enabled": True, "factors": [2], "method": "drop-random"})


def test_other_endpoints_are_sent_no_dfmr_object(items: list[Item]) -> None:
    assert plans(parse("full"), items[:1], Offer()) == {"0": Plan(None)}
    assert plans(parse("downscaled@2"), items[:1], Offer()) == {"0": Plan(None, Change("downscale", 2))}


def test_every_kind_gets_its_share_of_a_matched_mix(items: list[Item]) -> None:
    reference = {item.id: [2 if item.kind == "rich" else 4] * len(item.pictures) for item in items}
    dealt = plans(parse("fixed@dfmr"), items, OFFER, reference=reference)
    for kind in ("simple", "rich", "blind spot"):
        of_kind = [dealt[item.id].dfmr for item in items if item.kind == kind]
        assert {body["factors"][0] for body in of_kind if body} == {2, 3}


def test_items_that_dfmr_failed_on_are_asked_all_the_same(items: list[Item]) -> None:
    dealt = plans(parse("random@dfmr"), items, OFFER, reference={"0": [2], "1": [2]})
    assert set(dealt) == {item.id for item in items}
