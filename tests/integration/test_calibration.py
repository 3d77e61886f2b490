"""From a folder of pictures to a profile in force that notices when pictures change."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pictures import message, noise, scene
from PIL import Image
from serving import CALIBRATED_TOKENS, PROFILES_TEXT, Server

from server.profiles.format import read_profile

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("own_profiles")]
WATCHED = PROFILES_TEXT.replace(
    "profiles:\n", "profiles:\n  watched: {calibrated: gauges.json, drift: {window: 50, least: 20}}\n"
)


def ask(server: Server, pictures: list[Image.Image]) -> Any:
    reply = server.client.chat.completions.create(
        model="small",
        messages=message(*pictures),  # type: ignore[arg-type]
        max_tokens=1,
        extra_body={"dfmr": {"profile": "watched"}},
    )
    return reply.dfmr  # type: ignore[attr-defined]


def test_calibrating_writes_thresholds_bins_a_fingerprint_and_a_picture(server: Server, gauges: Path) -> None:
    found = read_profile(gauges)
    assert found.calibration is not None
    assert set(found.policy["tau"]) == {"2", "3", "4", "6"}
    assert (found.calibration.pictures, found.calibration.factor) == (24, 2)
    assert found.calibration.mean_tokens <= CALIBRATED_TOKENS
    served = httpx.get(f"{server.url}/v1/dfmr/encoder", timeout=60).json()
    assert served["fingerprint"] == found.calibration.encoder.model_dump(mode="json")
    assert np.asarray(Image.open(gauges.with_suffix(".png"))).std() > 10


def test_the_profile_keeps_its_target_and_notices_other_pictures(server: Server, gauges: Path) -> None:
    assert server.reload_profiles(WATCHED).status_code == 200
    reports = [ask(server, [scene(seed) for seed in half]) for half in (range(12), range(12, 24))]
    found = read_profile(gauges).calibration
    assert found is not None
    assert sum(r["kept_visual_tokens"] for r in reports) / 24 == pytest.approx(found.mean_tokens, abs=0.01)
    assert server.total("dfmr_score_drift", profile="watched") < 0.1
    assert server.total("dfmr_keep_drift", profile="watched") == pytest.approx(
        found.mean_tokens / CALIBRATED_TOKENS - 1, abs=1e-3
    )
    for start in range(0, 52, 13):
        ask(server, [noise(1000 + start + i) for i in range(13)])
    assert server.total("dfmr_score_drift", profile="watched") > 0.25
    log = (server.model.parent / "server.log").read_text()
    assert "under profile watched are no longer those that it was calibrated on" in log


def test_a_profile_of_another_encoder_is_refused(server: Server, gauges: Path) -> None:
    content = json.loads(gauges.read_text())
    features = content["calibration"]["encoder"]["features"]
    content["calibration"]["encoder"]["features"] = features[::-1]
    gauges.with_name("other.json").write_text(json.dumps(content))
    reply = server.reload_profiles(WATCHED.replace("gauges.json", "other.json"))
    assert reply.status_code == 400
    assert "profile watched was calibrated for another encoder" in reply.json()["error"]["message"]
