import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.calibrate import Measured, apply, calibrate, find_pictures

FACTORS, TOKENS = (1, 2, 3, 4), (576, 144, 64, 36)


def measured(scores: list[list[float]]) -> Measured:
    return Measured(FACTORS, TOKENS, np.array([[0.0, *row] for row in scores]))


def test_the_threshold_splits_simple_pictures_from_rich_ones() -> None:
    pictures = measured([[0.1, 0.15, 0.2], [0.9, 1.0, 1.1]])
    found = calibrate(pictures, (576 + 36) / 2)
    assert found.histogram == {1: 1, 2: 0, 3: 0, 4: 1}
    assert 0.2 < found.tau <= 0.9


def test_a_target_below_the_largest_factor_is_refused_with_its_token_count() -> None:
    with pytest.raises(ValueError, match="keeps 36"):
        calibrate(measured([[0.1, 0.2, 0.3]]), 20)


scores = st.lists(st.tuples(*[st.floats(0.01, 5)] * 3).map(sorted), min_size=1, max_size=20)


@given(scores=scores, target=st.floats(36, 600))
def test_the_target_is_met_and_a_larger_threshold_never_keeps_more(scores: list[list[float]], target: float) -> None:
    pictures = measured(scores)
    found = calibrate(pictures, target)
    assert found.mean_tokens <= target
    assert sum(found.histogram.values()) == len(scores)
    assert apply(pictures, found.tau * 1.5).mean_tokens <= found.mean_tokens


def test_folders_are_searched_and_other_files_left_out(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.JPG", "deep/b.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_pictures([tmp_path])] == ["a.JPG", "b.png"]
