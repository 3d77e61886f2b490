"""What a profiles file may say, and how it is told that it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.profiles.format import Calibration, Fingerprint, read_profile, read_profiles

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "ab" * 32
KEY = "sk-secret-0123456789"
ENCODER = Fingerprint(config="c", features=(1.0, -2.0, 0.5))
CALIBRATION: dict[str, Any] = {
    "pictures": 10,
    "target_tokens": 144,
    "mean_tokens": 140,
    "factor": 2,
    "edges": [0.2, 0.4],
    "shares": [0.5, 0.3, 0.2],
    "encoder": ENCODER.model_dump(),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "profiles.yaml"
    path.write_text(text)
    return path


def test_the_example_file_is_right() -> None:
    content = read_profiles(ROOT / "examples" / "profiles.yaml")
    assert list(content.profiles) == ["inspection", "customer-support", "archive"]
    assert content.keys == {}


def test_a_file_maps_digests_of_keys_to_names(tmp_path: Path) -> None:
    path = written(tmp_path, f"profiles: {{fast: {{policy: {{tau: 2}}}}}}\nkeys: {{{DIGEST}: fast}}")
    assert read_profiles(path).keys == {DIGEST: "fast"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("profiles: {}", "profiles: "),
        ("{}", "profiles: Field required"),
        ("", "profiles.yaml: "),
        ("- a", "profiles.yaml: "),
        ("profiles: {a: {}}\nprofile: a", "profile: Extra inputs"),
        ("profiles: {a: {tau: 3}}", "profiles.a.tau: Extra inputs"),
        ("profiles: {A b: {}}", "profiles.A b"),
        ("profiles: {default: {}}", "the server's own policy"),
        (f"profiles: {{a: {{}}}}\nkeys: {{{DIGEST}: b}}", "no profile b; there are a, default"),
        ("profiles: {a: {drift: {window: 60, least: 70}}}", r"least \(70\) is more than the window"),
        ("profiles: {a: {}, b: [}", "line 1: "),
        ("profiles:\n  a: {}\n  a: {policy: {tau: 1}}", "line 3: a name stands twice"),
        ("profiles: {a: !!python/object:os.system {}}", "line 1: "),
        ("\x00", "not YAML"),
        ("profiles: {[a]: {}}", "line 1: a name must be a plain word"),
        ("[" * 10_000, "not YAML"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_profiles(written(tmp_path, text))


def test_a_key_that_was_put_in_clear_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, f"profiles: {{a: {{}}}}\nkeys: {{{KEY}: a}}")
    with pytest.raises(ValueError, match="must be the SHA-256") as caught:
        read_profiles(path)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.yaml: No such file"):
        read_profiles(tmp_path / "missing.yaml")


def test_a_checkpoints_profile_of_before_there_were_calibrations_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dfmr_profile.json"
    path.write_text(json.dumps({"policy": {"tau": 0.8, "factors": [1, 2]}, "note": "n"}))
    assert read_profile(path).calibration is None
    assert read_profile(ROOT / "models" / "tiny-llava-dfmr" / "dfmr_profile.json").policy["factors"]


@pytest.mark.parametrize(
    "change",
    [
        {"edges": [0.4, 0.2]},
        {"edges": [0.2, 0.2]},
        {"shares": [0.5, 0.5]},
        {"shares": [0.5, 0.3, 0.3]},
        {"shares": [1.2, -0.4, 0.2]},
        {"target_tokens": 0},
    ],
)
def test_bins_that_are_none_are_refused(change: dict[str, Any]) -> None:
    Calibration.model_validate(CALIBRATION)
    with pytest.raises(ValueError, match="Calibration"):
        Calibration.model_validate({**CALIBRATION, **change})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ENCODER, None),
        (Fingerprint(config="c", features=(1.002, -1.996, 0.501)), None),
        (Fingerprint(config="d", features=ENCODER.features), "configured differently"),
        (Fingerprint(config="c", features=(1.0, -2.0)), "another width"),
        (Fingerprint(config="c", features=(1.0, 2.0, 0.5)), "weights differ"),
        (Fingerprint(config="c", features=(2.0, -4.0, 1.0)), "weights differ"),
        (Fingerprint(config="c", features=(0.0, 0.0, 0.0)), "weights differ"),
    ],
)
def test_an_encoder_is_known_again_up_to_rounding(other: Fingerprint, said: str | None) -> None:
    for one, two in ((ENCODER, other), (other, ENCODER)):
        difference = one.difference(two)
        assert (difference is None) if said is None else said in str(difference)
