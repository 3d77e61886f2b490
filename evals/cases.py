"""Case studies: questions on which compression changed the answer, for better and for worse, and some on which not."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals import pictures
from evals.client import Endpoint, RequestFailedError
from evals.items import Item
from evals.store import Row
from evals.summary import Graded

OUTCOMES = {
    "won": "right when compressed, wrong at full detail",
    "lost": "wrong when compressed, right at full detail",
    "kept": "right both times",
    "missed": "wrong both times",
}
FOLDER = "cases"


@dataclass(frozen=True)
class Case:
    """One question under both policies, with a thumbnail of each picture, the kept grid drawn over it."""

    outcome: str
    item: Item
    full: Row
    ours: Row
    thumbnails: tuple[bytes, ...]


def outcome(full: float, ours: float) -> str:
    """Which of `OUTCOMES` a pair of scores is; a half or more counts as right."""
    if (full >= 0.5) == (ours >= 0.5):
        return "kept" if ours >= 0.5 else "missed"
    return "won" if ours >= 0.5 else "lost"


def choose(full: Graded, ours: Graded, each: int, seed: int = 0) -> list[tuple[str, Item, Row, Row]]:
    """At most ``each`` cases of every outcome, at random, from as many kinds of question as possible."""
    theirs = {item.id: row for item, row in zip(full.items, full.rows, strict=True)}
    found: dict[str, dict[str, list[tuple[str, Item, Row, Row]]]] = {name: {} for name in OUTCOMES}
    for item, row in zip(ours.items, ours.rows, strict=True):
        if item.id not in theirs or row.error or theirs[item.id].error:
            continue
        name = outcome(full.single[item.id], ours.single[item.id])
        found[name].setdefault(item.kind, []).append((name, item, theirs[item.id], row))
    chosen = []
    rng = random.Random(seed)
    for by_kind in found.values():
        kinds = list(by_kind.values())
        rng.shuffle(kinds)
        for members in kinds:
            rng.shuffle(members)
        turns = [members[turn] for turn in range(each) for members in kinds if turn < len(members)]
        chosen += turns[:each]
    return chosen


async def draw(endpoint: Endpoint, chosen: Sequence[tuple[str, Item, Row, Row]], folder: Path) -> list[Case]:
    """Have the endpoint draw the kept grid over each case's pictures; thumbnails stay in ``folder`` for later runs.

    An endpoint that cannot leaves the picture itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for name, item, full, ours in chosen:
        thumbnails = []
        for index, source in enumerate(item.pictures):
            identity = f"{item.id}/{index}/{ours.dfmr}".encode()
            path = folder / f"{hashlib.sha256(identity).hexdigest()[:20]}.jpg"
            if not path.is_file():
                path.write_bytes(pictures.thumbnail(await _overlay(endpoint, source, ours)))
            thumbnails.append(path.read_bytes())
        cases.append(Case(name, item, full, ours, tuple(thumbnails)))
    return cases


async def _overlay(endpoint: Endpoint, source: pictures.Source, row: Row) -> bytes:
    explained: Mapping[str, object] | None = None
    if row.dfmr is not None:
        try:
            explained = await endpoint.explain(pictures.upload_url(source), row.dfmr, overlay=True)
        except RequestFailedError:
            explained = None
    drawn = explained and explained.get("overlay")
    return pictures.read(drawn if isinstance(drawn, str) else source)
