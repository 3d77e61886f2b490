"""What `/v1/dfmr/explain` answers, from a picture that was encoded."""

import math
from collections.abc import Sequence
from typing import TypeVar

from server.api.overlay import overlay_data_url
from server.api.schemas import AlternativeReport, CandidateReport, ExplainResponse, RegionsExplanation
from server.encoding.cache import Entry
from server.encoding.content import as_pil
from server.encoding.encoder import Picture, PictureEncoder
from server.encoding.explain import alternatives
from server.encoding.jobs import EncodedPicture
from server.encoding.protection import blocks_with
from server.policy import Policy
from server.savings import ImageReport, RegionsReport

_T = TypeVar("_T")


def explanation(
    encoder: PictureEncoder, picture: Picture, policy: Policy, profile: str, encoded: EncodedPicture, *, overlay: bool
) -> ExplainResponse:
    """Why a picture keeps what it keeps, and what would change that. Decides and draws, so call it in a thread."""
    (choice,) = encoder.choices([picture], policy)
    entry = Entry(encoded.scores, windows=encoded.windows)
    others = alternatives(encoder.decider, entry, policy, picture.detail, choice.protected)
    report = ImageReport.of(encoded, 0.0, encoder.grid)
    rows, columns = encoder.grid
    return ExplainResponse(
        factor=encoded.features.factor,
        grid=encoded.features.grid,
        original_visual_tokens=rows * columns,
        kept_visual_tokens=len(encoded.features.tensor),
        detail=picture.detail,
        cached=encoded.cached,
        profile=profile,
        policy=policy,
        candidates=_candidates(encoder, choice.thresholds, encoded),
        regions=_regions(encoder, entry, encoded, choice.protected),
        squeezed_from=report.squeezed_from,
        alternatives=[AlternativeReport(tau=o.tau, visual_tokens=o.tokens, factor=o.factor) for o in others],
        overlay=_overlay(encoder, picture, encoded) if overlay else None,
    )


def _candidates(encoder: PictureEncoder, row: tuple[float, ...], encoded: EncodedPicture) -> list[CandidateReport]:
    rows, columns = encoder.grid
    return [
        CandidateReport(
            factor=s,
            visual_tokens=math.ceil(rows / s) * math.ceil(columns / s),
            score=score,
            rule="threshold" if math.isfinite(limit) else "always" if limit > 0 else "never",
            threshold=limit if math.isfinite(limit) else None,
            passes=score < limit,
        )
        for s, limit, score in zip(encoder.candidates, row, encoded.scores, strict=True)
    ]


def _regions(
    encoder: PictureEncoder, entry: Entry, encoded: EncodedPicture, protected: bytes | None
) -> RegionsExplanation | None:
    layout = encoded.features.layout
    report = RegionsReport.of(layout, encoder.grid)
    if layout is None or report is None:
        return None
    factors = [s for s in encoder.candidates if layout.block % s == 0]
    scores = encoder.decider.block_scores(entry, layout.block, factors)
    across = len(report.factors[0])
    return RegionsExplanation(
        **report.model_dump(),
        scores={s: _in_rows(scores[:, column].tolist(), across) for column, s in enumerate(factors)},
        protected=_in_rows(blocks_with(protected, encoder.grid, layout.block), across),
    )


def _in_rows(values: Sequence[_T], across: int) -> list[list[_T]]:
    return [list(values[start : start + across]) for start in range(0, len(values), across)]


def _overlay(encoder: PictureEncoder, picture: Picture, encoded: EncodedPicture) -> str:
    image = as_pil(picture.image)
    boxes = [encoder.preprocessor.place(box, image.size) for box in picture.protect]
    return overlay_data_url(encoder.preprocessor(image), encoder.grid, encoded.features.key, boxes)
