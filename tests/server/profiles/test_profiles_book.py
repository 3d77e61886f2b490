"""Which policy is in force: a request's fields over its profile, its key's, the server's, the server's own policy."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from test_profiles_format import CALIBRATION, ENCODER

from server.policy import DfmrOptions, Policy, ServerSettings
from server.profiles.book import ProfileBook, key_digest, load_book
from server.profiles.checkpoint import PROFILE_FILE, checkpoint_profile

KEY = "sk-0123"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
FILE = f"""
profiles:
  inspection: {{policy: {{factors: [1, 2], tau: 0.1}}}}
  archive: {{note: the gist, policy: {{max_tokens_per_image: 64}}}}
  most: {{policy: {{factors: [1, 8], tau: {{8: 1.5}}}}}}
keys: {{{DIGEST}: archive}}
"""
OWN = Policy(tau=0.5, factors=(1, 2, 3, 4))


def book(folder: Path, text: str = FILE, **settings: Any) -> ProfileBook:
    path = folder / "profiles.yaml"
    path.write_text(text)
    return load_book(ServerSettings(policy=OWN, profiles=str(path), **settings))


@pytest.mark.parametrize(
    ("request_names", "with_key", "server", "chosen"),
    [
        (None, False, None, "default"),
        (None, False, "most", "most"),
        (None, True, "most", "archive"),
        ("inspection", True, "most", "inspection"),
        ("default", True, "most", "default"),
    ],
)
def test_the_nearest_profile_is_in_force(
    tmp_path: Path, request_names: str | None, with_key: bool, server: str | None, chosen: str
) -> None:
    options = DfmrOptions(profile=request_names)
    found = book(tmp_path, profile=server).choose(options, DIGEST if with_key else "another")
    assert found.name == chosen


def test_what_a_profile_leaves_open_is_the_servers_own(tmp_path: Path) -> None:
    assert book(tmp_path).choose(key=DIGEST).policy == OWN.model_copy(update={"max_tokens_per_image": 64})


def test_a_requests_fields_override_its_profile(tmp_path: Path) -> None:
    found = book(tmp_path).choose(DfmrOptions(profile="inspection", tau=0.7))
    assert (found.policy.tau, found.policy.factors) == (0.7, (1, 2))


def test_a_request_may_not_name_a_factor_that_its_profile_does_not_offer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="factor 4 is not offered"):
        book(tmp_path).choose(DfmrOptions(profile="inspection", factors=(4,)))


def test_a_profile_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no profile 'fast'; there are archive, default, inspection, most"):
        book(tmp_path).choose(DfmrOptions(profile="fast"))


def test_without_a_file_there_is_the_servers_own_policy() -> None:
    alone = load_book(ServerSettings(policy=OWN))
    assert alone.choose(DfmrOptions(tau=0.1), DIGEST).name == "default"
    assert alone.candidates == OWN.candidates


def test_all_factors_of_all_profiles_are_measured(tmp_path: Path) -> None:
    assert book(tmp_path).candidates == (1, 2, 3, 4, 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profiles: {a: {policy: {taux: 1}}}", "profile a: taux: Extra inputs"),
        ("profiles: {a: {policy: {tau: -1}}}", "profile a: tau"),
        ("profiles: {a: {policy: {tau: {2: 1}, factors: [1, 2, 3]}}}", "profile a: tau has no threshold for factor 3"),
        ("profiles: {a: {policy: {aggregate: p90}}}", "profile a: aggregate is the same for all profiles"),
        ("profiles: {a: {calibrated: no.json}}", r"no\.json: No such file"),
    ],
)
def test_a_wrong_policy_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        book(tmp_path, text)


@pytest.mark.parametrize(
    ("file", "said"), [(True, "there are default, inspection"), (False, "without a profiles file")]
)
def test_the_servers_profile_must_exist(tmp_path: Path, file: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        book(tmp_path, profile="fast") if file else load_book(ServerSettings(profile="fast"))


def calibrated(folder: Path, name: str = "gauges.json", **changes: Any) -> None:
    profile = {"policy": {"tau": {"2": 0.3, "3": 0.4}, "factors": [1, 2, 3]}, "calibration": {**CALIBRATION, **changes}}
    (folder / name).write_text(json.dumps(profile))


class TestCalibrated:
    TEXT = "profiles: {a: {calibrated: gauges.json, policy: {max_tokens_per_image: 144}}}"

    def test_thresholds_come_from_the_calibration_and_the_profile_overrides_them(self, tmp_path: Path) -> None:
        calibrated(tmp_path)
        entry = book(tmp_path, self.TEXT).entries["a"]
        assert entry.policy == Policy(tau={2: 0.3, 3: 0.4}, factors=(1, 2, 3), max_tokens_per_image=144)
        assert entry.calibration is not None
        assert entry.calibration.target_tokens == 144

    def test_one_of_another_encoder_is_refused(self, tmp_path: Path) -> None:
        calibrated(tmp_path)
        found = book(tmp_path, self.TEXT)
        found.check(found.candidates, "c", None)
        found.check(found.candidates, "c", ENCODER)
        with pytest.raises(ValueError, match=r"profile a was calibrated for another encoder .* configured"):
            found.check(found.candidates, "d", None)
        with pytest.raises(ValueError, match=r"weights differ.*dfmr-calibrate"):
            found.check(found.candidates, "c", ENCODER.model_copy(update={"features": (1.0, 2.0, 0.5)}))

    def test_one_of_another_score_is_refused(self, tmp_path: Path) -> None:
        calibrated(tmp_path, aggregate="p90")
        with pytest.raises(ValueError, match="aggregate 'p90', and the server measures 'mean'"):
            book(tmp_path, self.TEXT)

    def test_the_factor_whose_scores_are_watched_is_measured(self, tmp_path: Path) -> None:
        calibrated(tmp_path, factor=6)
        assert 6 in book(tmp_path, self.TEXT).candidates

    def test_a_file_without_a_calibration_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "gauges.json").write_text('{"policy": {"tau": 1}}')
        with pytest.raises(ValueError, match=r"gauges\.json has no calibration"):
            book(tmp_path, self.TEXT)

    def test_the_checkpoints_own_is_watched_until_the_operator_sets_other_thresholds(self, tmp_path: Path) -> None:
        calibrated(tmp_path, PROFILE_FILE)
        own = ServerSettings(policy=Policy(tau={2: 0.3, 3: 0.4}, factors=(1, 2, 3)))
        checkpoints = checkpoint_profile(str(tmp_path))
        assert load_book(own, checkpoints).entries["default"].calibration is not None
        assert load_book(ServerSettings(policy=OWN), checkpoints).entries["default"].calibration is None


def test_a_factor_that_is_not_measured_needs_a_restart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profile most: pooling factor 8 is not measured; this server measures 1, 2"):
        book(tmp_path).check((1, 2, 3, 4), "c", None)


@pytest.mark.parametrize(
    ("header", "digest"),
    [
        (f"Bearer {KEY}", DIGEST),
        (f"bearer {KEY}", DIGEST),
        (f"Basic {KEY}", None),
        (KEY, None),
        ("", None),
        (None, None),
    ],
)
def test_the_key_is_read_as_vllm_reads_it(header: str | None, digest: str | None) -> None:
    assert key_digest(header) == digest


def test_vllms_own_check_takes_the_headers_that_ours_reads() -> None:
    from starlette.datastructures import Headers
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    check = AuthenticationMiddleware(None, [KEY])
    for header in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {KEY}", KEY, f"Bearer  {KEY}"):
        theirs = check.verify_token(Headers({"Authorization": header}))
        assert theirs == (key_digest(header) == DIGEST)
