"""What an operator and a client may ask for, whose word counts, and what each picture's thresholds come to."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dfmr_kernels import decide, tokens_after
from server.policy import (
    UNTRAINED_FACTORS,
    UNTRAINED_TAU,
    Detail,
    DfmrOptions,
    Policy,
    ServerSettings,
    load_settings,
    read_boxes,
)
from server.profiles.checkpoint import PROFILE_FILE

INF = math.inf
GRID = (24, 24)
POLICY = Policy(tau={2: 0.5, 3: 0.6, 4: 0.7}, factors=(1, 2, 3, 4))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"taux": 0.4}, "taux"),
            ({"metric": "std"}, "metric"),
            ({"aggregate": "mean"}, "aggregate"),
            ({"tau": -0.1}, "tau"),
            ({"tau": math.nan}, "tau"),
            ({"tau": math.inf}, "tau"),
            ({"tau": {2: -1.0}}, "tau"),
            ({"tau": {2: math.nan}}, "tau"),
            ({"tau": {0: 0.4}}, "tau"),
            ({"tau": "high"}, "tau"),
            ({"factors": []}, "factors"),
            ({"factors": [0]}, "factors"),
            ({"factors": [65]}, "factors"),
            ({"factors": [2, 2]}, "factors"),
            ({"factors": [1.5]}, "factors"),
            ({"max_tokens_per_image": 0}, "max_tokens_per_image"),
            ({"enabled": "perhaps"}, "enabled"),
        ],
    )
    def test_one_that_makes_no_sense_is_named(self, options: dict[str, Any], field: str) -> None:
        with pytest.raises(ValidationError) as caught:
            DfmrOptions.model_validate(options)
        assert {error["loc"][0] for error in caught.value.errors()} == {field}

    def test_each_has_an_example_that_is_valid(self) -> None:
        for name, field in DfmrOptions.model_fields.items():
            assert field.description
            assert field.examples, name
            for example in field.examples:
                DfmrOptions.model_validate({name: example})

    def test_an_unknown_one_is_called_so(self) -> None:
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            DfmrOptions.model_validate({"taux": 0.4})

    def test_thresholds_per_factor_come_with_json_keys(self) -> None:
        options = DfmrOptions.model_validate_json('{"tau": {"2": 0.4, "3": 0.5}}')
        assert options.tau == {2: 0.4, 3: 0.5}

    def test_factors_are_sorted(self) -> None:
        assert DfmrOptions(factors=(4, 1, 2)).factors == (1, 2, 4)
        assert Policy(factors=(4, 1, 2)).factors == (1, 2, 4)


class TestMerge:
    def test_a_request_without_options_gets_the_servers_policy(self) -> None:
        assert POLICY.merge(None) == POLICY
        assert POLICY.merge(DfmrOptions()) == POLICY

    @pytest.mark.parametrize(
        ("options", "changed"),
        [
            (DfmrOptions(enabled=False), {"enabled": False}),
            (DfmrOptions(tau=0.4), {"tau": 0.4}),
            (DfmrOptions(tau=0.0), {"tau": 0.0}),
            (DfmrOptions(tau={2: 0.4}), {"tau": {2: 0.4}}),
            (DfmrOptions(factors=(2,)), {"factors": (2,)}),
            (DfmrOptions(max_tokens_per_image=100), {"max_tokens_per_image": 100}),
        ],
    )
    def test_a_requests_option_replaces_the_servers_and_only_that(
        self, options: DfmrOptions, changed: dict[str, Any]
    ) -> None:
        before = POLICY.model_dump()
        assert POLICY.merge(options).model_dump() == {**before, **changed}
        assert POLICY.model_dump() == before

    @pytest.mark.parametrize("options", [DfmrOptions(factors=(1, 6)), DfmrOptions(tau={2: 0.5, 6: 0.5})])
    def test_a_factor_that_the_server_does_not_offer_is_refused_by_name(self, options: DfmrOptions) -> None:
        with pytest.raises(ValueError, match="pooling factor 6 is not offered; this server offers 1, 2, 3, 4"):
            POLICY.merge(options)

    def test_factor_one_is_always_offered(self) -> None:
        offered = Policy(factors=(2, 3))
        assert offered.candidates == (1, 2, 3)
        assert offered.merge(DfmrOptions(factors=(1,))).factors == (1,)


class TestThresholds:
    def row(self, policy: Policy, detail: Detail = "auto") -> tuple[float, ...]:
        return policy.thresholds(POLICY.candidates, GRID, detail)

    def test_auto_lets_the_score_decide(self) -> None:
        assert self.row(POLICY) == (INF, 0.5, 0.6, 0.7)

    def test_one_threshold_may_stand_for_all_factors(self) -> None:
        assert self.row(POLICY.merge(DfmrOptions(tau=0.3))) == (INF, 0.3, 0.3, 0.3)

    def test_high_keeps_every_token(self) -> None:
        assert self.row(POLICY, "high") == (INF, -INF, -INF, -INF)

    def test_low_takes_the_largest_factor(self) -> None:
        assert self.row(POLICY, "low") == (-INF, -INF, -INF, INF)

    def test_low_takes_the_largest_factor_that_the_request_allows(self) -> None:
        assert self.row(POLICY.merge(DfmrOptions(factors=(1, 3))), "low") == (-INF, -INF, INF, -INF)

    @pytest.mark.parametrize("detail", ["auto", "low", "high"])
    def test_disabled_keeps_every_token_whatever_the_detail(self, detail: Detail) -> None:
        assert self.row(POLICY.merge(DfmrOptions(enabled=False)), detail) == (INF, -INF, -INF, -INF)

    def test_factors_that_are_not_wanted_never_pass(self) -> None:
        assert self.row(POLICY.merge(DfmrOptions(factors=(1, 3)))) == (INF, -INF, 0.6, -INF)

    def test_without_factor_one_the_smallest_always_passes(self) -> None:
        assert self.row(POLICY.merge(DfmrOptions(factors=(2, 4)))) == (-INF, INF, -INF, 0.7)

    @pytest.mark.parametrize(
        ("limit", "row"),
        [
            (576, (INF, 0.5, 0.6, 0.7)),
            (575, (-INF, INF, 0.6, 0.7)),
            (144, (-INF, INF, 0.6, 0.7)),
            (143, (-INF, -INF, INF, 0.7)),
            (36, (-INF, -INF, -INF, INF)),
        ],
    )
    def test_a_token_budget_overrides_the_threshold_where_it_has_to(self, limit: int, row: tuple[float, ...]) -> None:
        assert self.row(POLICY.merge(DfmrOptions(max_tokens_per_image=limit))) == row

    def test_high_is_not_bound_by_the_token_budget(self) -> None:
        assert self.row(POLICY.merge(DfmrOptions(max_tokens_per_image=1)), "high") == (INF, -INF, -INF, -INF)

    def test_a_budget_that_no_factor_meets_says_how_far_it_can_go(self) -> None:
        with pytest.raises(ValueError, match="within 35 tokens: the fewest possible is 36, at factor 4"):
            self.row(POLICY.merge(DfmrOptions(max_tokens_per_image=35)))

    def test_a_factor_without_a_threshold_is_named(self) -> None:
        with pytest.raises(ValueError, match="no threshold for factor 3"):
            self.row(POLICY.merge(DfmrOptions(tau={2: 0.5, 4: 0.7})))

    @given(
        grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        factors=st.sets(st.sampled_from(POLICY.candidates), min_size=1),
        budget=st.none() | st.integers(1, 600),
        detail=st.sampled_from(["auto", "low", "high"]),
        scores=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    )
    def test_every_row_leads_to_a_decision_within_the_policy(
        self,
        grid: tuple[int, int],
        factors: set[int],
        budget: int | None,
        detail: Detail,
        scores: list[float],
    ) -> None:
        policy = POLICY.merge(DfmrOptions(factors=tuple(factors), max_tokens_per_image=budget))
        try:
            row = policy.thresholds(POLICY.candidates, grid, detail)
        except ValueError:
            assert budget is not None
            assert all(tokens_after(grid, s) > budget for s in factors)
            return
        chosen = decide(scores, row, POLICY.candidates)
        assert chosen in factors if detail != "high" else chosen == 1
        if detail == "auto" and budget is not None:
            assert tokens_after(grid, chosen) <= budget


class TestSettings:
    @pytest.fixture
    def model(self, tmp_path: Path) -> str:
        profile = {"policy": {"tau": {"2": 0.5, "3": 0.6}, "factors": [1, 2, 3]}, "note": "trained with pooled maps"}
        (tmp_path / PROFILE_FILE).write_text(json.dumps(profile))
        return str(tmp_path)

    def test_without_a_profile_the_defaults_are_cautious(self, tmp_path: Path) -> None:
        settings, profile = load_settings({}, str(tmp_path))
        assert profile is None
        assert (settings.policy.tau, settings.policy.factors) == (UNTRAINED_TAU, UNTRAINED_FACTORS)

    def test_the_checkpoints_profile_replaces_the_defaults(self, model: str) -> None:
        settings, profile = load_settings({}, model)
        assert profile is not None
        assert settings.policy == Policy(tau={2: 0.5, 3: 0.6}, factors=(1, 2, 3))

    @pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
    def test_the_operator_overrides_the_profile(self, model: str, nested: bool) -> None:
        asked = {"tau": 0.9}
        settings, profile = load_settings({"dfmr": {"policy": asked} if nested else asked}, model)
        assert profile is not None
        assert settings.policy == Policy(tau=0.9, factors=(1, 2, 3))

    def test_policy_and_bounds_may_stand_side_by_side(self, tmp_path: Path) -> None:
        settings, _ = load_settings({"dfmr": {"tau": 0.4, "factors": [1, 3], "max_batch": 4}}, str(tmp_path))
        assert settings == ServerSettings(policy=Policy(tau=0.4, factors=(1, 3)), max_batch=4)

    def test_nested_and_flat_mean_the_same(self, tmp_path: Path) -> None:
        flat = load_settings({"dfmr": {"tau": 0.4, "max_queue": 9}}, str(tmp_path))
        assert load_settings({"dfmr": {"policy": {"tau": 0.4}, "max_queue": 9}}, str(tmp_path)) == flat

    def test_what_is_not_ours_is_left_alone(self, tmp_path: Path) -> None:
        assert load_settings({"another_plugin": {"tau": "x"}}, str(tmp_path))[0] == ServerSettings()

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"max_bach": 4}, "max_bach"),
            ({"policy": {"taux": 0.4}}, "taux"),
            ({"max_batch": 0}, "max_batch"),
            ({"max_queue": 0}, "max_queue"),
            ({"cache_bytes": -1}, "cache_bytes"),
            ({"preprocess_threads": -1}, "preprocess_threads"),
            ({"tau": -1}, "tau"),
            ({"factors": [0]}, "factors"),
            ({"max_tokens_per_image": 0}, "max_tokens_per_image"),
            ({"metric": "best"}, "unknown metric 'best', choose one of std, std-normalised"),
            ({"aggregate": "median-of-medians"}, "unknown aggregate 'median-of-medians'; there are mean"),
        ],
    )
    def test_a_wrong_setting_is_named(self, settings: dict[str, Any], named: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="dfmr settings: ") as caught:
            load_settings({"dfmr": settings}, str(tmp_path))
        assert named in str(caught.value)

    def test_every_wrong_setting_is_named_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"(?s)max_bach.*max_queue|max_queue.*max_bach"):
            load_settings({"dfmr": {"max_bach": 4, "max_queue": 0}}, str(tmp_path))

    def test_a_factor_without_a_threshold_is_refused_at_start_up_not_per_request(self, model: str) -> None:
        with pytest.raises(ValueError, match=r"tau.*factor 6|factor 6.*tau"):
            load_settings({"dfmr": {"factors": [1, 2, 6]}}, model)

    def test_a_profile_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / PROFILE_FILE).write_text("{")
        with pytest.raises(ValueError, match=PROFILE_FILE):
            load_settings({}, str(tmp_path))

    def test_a_profile_may_say_more_than_this_version_knows(self, tmp_path: Path) -> None:
        (tmp_path / PROFILE_FILE).write_text(json.dumps({"policy": {"tau": 0.4}, "made_by": {"steps": 90}}))
        assert load_settings({}, str(tmp_path))[0].policy.tau == 0.4


class TestChoice:
    CANDIDATES = (1, 2, 3, 4)

    def test_of_a_plain_picture_is_its_thresholds(self) -> None:
        assert POLICY.choice(self.CANDIDATES, GRID, "auto") == (
            POLICY.thresholds(self.CANDIDATES, GRID, "auto"),
            0,
            None,
            None,
        )

    def test_in_regions_offers_what_divides_a_block(self) -> None:
        choice = POLICY.merge(DfmrOptions(mode="regions")).choice(self.CANDIDATES, GRID, "auto")
        assert choice == ((INF, 0.5, -INF, 0.7), 4, None, None)

    @pytest.mark.parametrize("detail", ["low", "high"])
    def test_of_a_detail_that_leaves_one_factor_knows_no_regions(self, detail: Detail) -> None:
        regions = POLICY.merge(DfmrOptions(mode="regions"))
        assert regions.choice(self.CANDIDATES, GRID, detail) == POLICY.choice(self.CANDIDATES, GRID, detail)

    def test_of_a_map_without_blocks_is_that_of_the_picture(self) -> None:
        regions = POLICY.merge(DfmrOptions(mode="regions"))
        assert regions.choice(self.CANDIDATES, (3, 3), "auto") == POLICY.choice(self.CANDIDATES, (3, 3), "auto")

    def test_protects_cells_and_limits_what_is_left(self) -> None:
        cells = bytes([1] + [0] * 575)
        policy = POLICY.merge(DfmrOptions(max_tokens_per_image=60))
        assert policy.choice(self.CANDIDATES, GRID, "auto", cells) == ((INF, 0.5, 0.6, 0.7), 0, cells, 60)
        with pytest.raises(ValueError, match=r"max_tokens_per_image: 50 are not enough .* the fewest possible is 51"):
            POLICY.merge(DfmrOptions(max_tokens_per_image=50)).choice(self.CANDIDATES, GRID, "auto", cells)

    def test_needs_no_protection_where_nothing_is_pooled(self) -> None:
        assert POLICY.choice(self.CANDIDATES, GRID, "high", bytes(576)).protected is None

    def test_of_a_control_knows_neither(self) -> None:
        control = Policy(allow_controls=True)
        with pytest.raises(ValueError, match="knows no regions or boxes"):
            control.merge(DfmrOptions(method="drop-random", mode="regions"))
        with pytest.raises(ValueError, match="knows no regions or boxes"):
            control.merge(DfmrOptions(method="drop-cls", protect=(((0, 0, 1, 1),),)))
        with pytest.raises(ValidationError, match="knows no regions or boxes"):
            Policy(method="drop-cls", mode="regions")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("everything", "list of boxes"),
        ([[0, 0, 1]], "list of boxes"),
        ([[0, 0, 1, 1.5]], "less than or equal to 1"),
        ([[0.5, 0, 0.5, 1]], "left < right"),
        ([[0, 0, 1, float("nan")]], "list of boxes"),
        ([[0, 0, 1, 1]] * 65, "at most 64"),
    ],
)
def test_boxes_that_make_no_sense_are_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_boxes(value)
