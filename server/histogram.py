"""A picture of how scores are distributed and where thresholds cut them. PIL draws it, so that nothing is added."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _ROW, _LEFT, _TOP, _BOTTOM = 900, 130, 110, 56, 44
_BARS = 60
_INK, _FAINT, _BAR, _PASSED, _CUT = (40, 40, 40), (215, 215, 215), (176, 190, 197), (46, 125, 190), (214, 69, 65)


def histogram(
    scores: Mapping[int, NDArray[np.floating[Any]]], tau: Mapping[int, float], chosen: Mapping[int, int]
) -> Image.Image:
    """One row of bars per pooling factor, over one axis of scores.

    Args:
        scores: per factor above 1, one score per picture, ``(pictures,)``.
        tau: per factor its threshold; scores under it are drawn in another colour.
        chosen: pictures that are pooled by each factor.
    """
    pictures = sum(chosen.values())
    highest = max(float(row.max()) for row in scores.values()) or 1.0
    picture = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(scores) + _BOTTOM), "white")
    draw = ImageDraw.Draw(picture)
    title, text = ImageFont.load_default(18), ImageFont.load_default(13)
    shares = ", ".join(f"{count / pictures:.0%} at {s}" for s, count in chosen.items())
    draw.text((16, 12), f"Scores of {pictures} pictures by pooling factor. Chosen: {shares}", _INK, title)
    span = _WIDTH - _LEFT - 24

    def x(score: float) -> float:
        return _LEFT + span * min(score / highest, 1)

    for index, (s, row) in enumerate(scores.items()):
        base, height = _TOP + _ROW * (index + 1) - 14, _ROW - 34
        counts, edges = np.histogram(row, bins=_BARS, range=(0, highest))
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            colour = _PASSED if right <= tau[s] else _BAR
            if count:
                top = base - max(height * count / counts.max(), 1)
                draw.rectangle([x(left) + 1, top, x(right) - 1, base], colour)
        draw.line([(_LEFT, base), (_LEFT + span, base)], _FAINT)
        draw.text((16, base - height / 2 - 14), f"factor {s}", _INK, text)
        draw.text((16, base - height / 2 + 4), f"{np.mean(row < tau[s]):.0%} pass", _PASSED, text)
        cut = x(tau[s])
        draw.line([(cut, base - height - 4), (cut, base)], _CUT, 2)
        draw.text((min(cut + 5, _WIDTH - 90), base - height - 8), f"{tau[s]:.3g}", _CUT, text)
    foot = picture.height - _BOTTOM + 4
    for step in range(6):
        score = highest * step / 5
        draw.text((x(score), foot), f"{score:.2g}", _INK, text, anchor="ma")
    draw.text((_LEFT + span / 2, foot + 18), "score", _INK, text, anchor="ma")
    return picture
