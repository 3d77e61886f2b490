"""Requests on disk are what the scenario says."""

import base64
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtests import scenarios
from loadtests.pictures import KINDS, Gallery
from loadtests.workload import Questions, Workload, kept, make

MATRIX = scenarios.load()


def lines(work: Workload) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["content"] for line in work.path.read_text().splitlines()]


def test_no_two_pictures_are_equal() -> None:
    gallery = Gallery(seed=1)
    taken = [gallery.take(kind)[0] for kind in KINDS for _ in range(20)]
    assert len({hashlib.sha256(data).digest() for data in taken}) == len(taken)


def test_a_policy_of_mixed_factors_keeps_no_more_than_a_quarter(tmp_path: Path) -> None:
    work = make(tmp_path / "requests.jsonl", Questions(4, 4, ("flat",), 32), "dfmr", MATRIX, Gallery(0))
    assert sum(work.visual_tokens) / (4 * 4 * 576) <= 0.25
    assert set(work.visual_tokens) == {576 + 3 * 16, 3 * 144 + 16}


@pytest.mark.parametrize(
    ("name", "tokens"), [("one-phase", 576), ("uncompressed", 576), ("fixed", 144), ("lowest", 16)]
)
def test_policies_of_one_factor_keep_a_known_number_of_tokens(name: str, tokens: int) -> None:
    assert kept(MATRIX.policies[name], ["auto"]) == tokens


def test_text_of_the_limit_is_as_long_as_what_is_kept(tmp_path: Path) -> None:
    questions = Questions(2, 4, ("flat",), 32)
    work = make(tmp_path / "requests.jsonl", questions, "text-only", MATRIX, Gallery(0))
    for content, tokens in zip(lines(work), work.visual_tokens, strict=True):
        (part,) = content
        assert len(str(part["text"])) == 32 + tokens + 4
    assert work.pictures == 0


def test_repeated_requests_send_the_same_pictures_with_a_new_question(tmp_path: Path) -> None:
    work = make(tmp_path / "requests.jsonl", Questions(10, 2, ("flat",), 16, repeats=5), "dfmr", MATRIX, Gallery(0))
    assert work.seen == (False, True, True, True, True) * 2
    asked = lines(work)
    assert asked[0][:2] == asked[4][:2] != asked[5][:2]
    assert asked[0][2] != asked[1][2]


def test_a_client_that_downscales_sends_smaller_pictures(tmp_path: Path) -> None:
    work = make(tmp_path / "requests.jsonl", Questions(1, 1, ("photograph",), 16), "downscaled", MATRIX, Gallery(0))
    url: str = lines(work)[0][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        assert picture.size == (320, 240)


def test_a_matrix_with_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text("policies: {}\nscenarios: [{name: x, model: tiny, concurrency: 1, policies: [none]}]\n")
    with pytest.raises(ValueError, match="there is no policy none"):
        scenarios.load(path)


def test_a_scenario_needs_exactly_one_kind_of_load(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text("policies: {}\nscenarios: [{name: x, model: tiny, concurrency: 1, rates: [1], policies: []}]\n")
    with pytest.raises(ValueError, match="exactly one of"):
        scenarios.load(path)


def test_choosing_scenarios_by_a_wrong_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="four pictures"):
        MATRIX.chosen("short", ["five pictures"])


def test_texts_never_repeat_even_if_somebody_sets_the_seed(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        random.seed(0)
        work = make(tmp_path / "requests.jsonl", Questions(2, 0, ("flat",), 64), "text-only", MATRIX, Gallery(0))
        texts += [str(content[0]["text"]) for content in lines(work)]
    assert len(set(texts)) == 4
