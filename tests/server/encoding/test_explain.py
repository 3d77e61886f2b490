"""What would change a decision is found by the code that decides, for pictures and for regions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tower import POLICY, Tower, encoder_of, flat, gentle, noise

from server.encoding.cache import Entry
from server.encoding.encoder import Picture
from server.encoding.explain import above, alternatives
from server.policy import DfmrOptions

ENCODER = encoder_of(Tower())


@given(st.floats(1e-12, 1e12))
def test_the_number_above_a_score_is_barely_above_it(score: float) -> None:
    assert score < above(score) <= score * 1.0011


def test_every_score_of_nothing_has_a_number_above_it() -> None:
    assert above(0.0) > 0


@pytest.mark.parametrize("options", [{}, {"mode": "regions"}, {"max_tokens_per_image": 40}])
@pytest.mark.parametrize("box", [(), ((0.3, 0.0, 0.4, 0.2),)])
@pytest.mark.parametrize("image", [noise(1), gentle(2), flat()])
def test_an_alternative_does_what_it_says_and_no_smaller_tau_does(
    image: object, box: tuple[tuple[float, ...], ...], options: dict[str, object]
) -> None:
    policy = POLICY.merge(DfmrOptions.model_validate(options))
    picture = Picture(image, "auto", box)
    (encoded,) = ENCODER.encode_sync([picture], policy)
    entry = Entry(encoded.scores, windows=encoded.windows)
    found = alternatives(ENCODER.decider, entry, policy, "auto", ENCODER.protected(0, picture))
    assert [one.tokens for one in found] == sorted({one.tokens for one in found}, reverse=True)
    for one in found:
        (tried,) = ENCODER.encode_sync([picture], policy.model_copy(update={"tau": one.tau}))
        assert (len(tried.features.tensor), tried.features.factor) == (one.tokens, one.factor)
        if one.tau > above(0.0):
            lower = policy.model_copy(update={"tau": one.tau / 1.002})
            (less,) = ENCODER.encode_sync([picture], lower)
            assert len(less.features.tensor) > one.tokens


@pytest.mark.parametrize("detail", ["high", "low"])
def test_where_no_threshold_decides_nothing_would_change(detail: str) -> None:
    (encoded,) = ENCODER.encode_sync([Picture(gentle(2), detail)], POLICY)  # type: ignore[arg-type]
    entry = Entry(encoded.scores, windows=encoded.windows)
    assert alternatives(ENCODER.decider, entry, POLICY, detail, None) == []  # type: ignore[arg-type]
