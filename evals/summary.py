"""From answers to results: scores, means, intervals and comparisons."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from evals.bootstrap import Estimate, mean, paired_difference
from evals.items import Item, unit
from evals.policies import CONTROLS, Policy
from evals.results import Comparison, KindResult, PolicyResult
from evals.scoring import SUMMARIES, Scorer, scorer
from evals.store import Row

MATCHED_WITHIN = 0.01


class Graded:
    """A policy's rows with their scores.

    Args:
        rows: by item id; items without a row are left out.
        default: scorer of items that name none.

    Attributes:
        single: score by item.
        scores, kinds, groups: by unit, that is by item or set of items of which all must be right.
    """

    def __init__(self, items: Sequence[Item], rows: Mapping[str, Row], default: Scorer) -> None:
        self.items = [item for item in items if item.id in rows]
        self.rows = [rows[item.id] for item in self.items]
        self.single: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.kinds: dict[str, str] = {}
        self.groups: dict[str, str] = {}
        for item, row in zip(self.items, self.rows, strict=True):
            how = scorer(item.scorer) if item.scorer else default
            score = 0.0 if row.error else how(row.answer, item)
            self.single[item.id] = score
            name = unit(item)
            self.scores[name] = min(score, self.scores.get(name, 1.0))
            self.kinds[name] = item.kind
            if item.group is not None:
                self.groups[name] = item.group

    def of_kind(self, kind: str | None) -> dict[str, float]:
        """Scores by unit; of all kinds if ``kind`` is None."""
        return {name: score for name, score in self.scores.items() if kind is None or self.kinds[name] == kind}


def summarise(policy: Policy, graded: Graded, full: Graded | None) -> PolicyResult:
    """One policy's figures.

    Args:
        full: the uncompressed policy; None for itself, or if it was not run.
    """

    def against_full(kind: str | None) -> Estimate | None:
        if full is None or not graded.of_kind(kind).keys() & full.of_kind(kind).keys():
            return None
        return paired_difference(graded.of_kind(kind), full.of_kind(kind), graded.groups)

    kinds: dict[str, KindResult] = {}
    for kind in sorted(set(graded.kinds.values())):
        rows = [row for row, item in zip(graded.rows, graded.items, strict=True) if item.kind == kind]
        scores = graded.of_kind(kind)
        kinds[kind] = KindResult(
            questions=len(scores),
            accuracy=mean(scores, graded.groups),
            minus_full=against_full(kind),
            visual_tokens=tokens_per_picture(rows),
        )
    answered = [row for row in graded.rows if row.error is None]
    tokens, original = tokens_per_picture(answered), _per_picture([(r.original, r.pictures) for r in answered])
    pictures = sum(len(row.factors) for row in answered)
    fresh = [row for row in answered if not row.cached] or answered
    return PolicyResult(
        name=policy.name,
        family=policy.family,
        reference=policy.reference,
        questions=len(graded.scores),
        errors=len(graded.rows) - len(answered),
        truncated=sum(row.finish == "length" for row in answered),
        accuracy=mean(graded.scores, graded.groups),
        minus_full=against_full(None),
        kinds=kinds,
        visual_tokens=tokens,
        share=tokens / original if tokens is not None and original else None,
        prompt_tokens=_mean([row.prompt_tokens for row in answered]),
        factors=dict(sorted(Counter(s for row in answered for s in row.factors if s is not None).items())),
        cached_share=sum(row.cached for row in answered) / pictures if pictures else None,
        ttft_p50=_median([row.ttft for row in fresh]),
        seconds_p50=_median([row.seconds for row in fresh]),
        official=_official(graded),
    )


def comparisons(policies: Sequence[Policy], graded: Mapping[str, Graded]) -> list[Comparison]:
    """Each DFMR policy against each of its controls."""
    found = []
    for control in policies:
        if control.family not in CONTROLS or control.reference is None:
            continue
        ours, theirs = graded.get(control.reference), graded.get(control.name)
        if ours is None or theirs is None:
            continue
        tokens = tokens_per_picture(ours.rows), tokens_per_picture(theirs.rows)
        found.append(
            Comparison(
                policy=control.reference,
                control=control.name,
                difference=paired_difference(ours.scores, theirs.scores, ours.groups),
                policy_tokens=tokens[0],
                control_tokens=tokens[1],
                matched=_matched(*tokens),
                errors=sum(row.error is not None for row in (*ours.rows, *theirs.rows)),
            )
        )
    return found


def _matched(ours: float | None, theirs: float | None) -> bool:
    return ours is not None and theirs is not None and abs(theirs - ours) <= MATCHED_WITHIN * ours


def tokens_per_picture(rows: Sequence[Row]) -> float | None:
    """Mean visual tokens kept per picture; None where the endpoint does not say."""
    return _per_picture([(row.kept, row.pictures) for row in rows if row.error is None])


def _per_picture(counts: Sequence[tuple[int | None, int]]) -> float | None:
    known = [(tokens, pictures) for tokens, pictures in counts if tokens is not None]
    return sum(tokens for tokens, _ in known) / sum(pictures for _, pictures in known) if known else None


def _official(graded: Graded) -> dict[str, float]:
    """The benchmark's own figures, if all questions are from one and none failed: its rules know no missing answer."""
    names = {item.benchmark for item in graded.items}
    name = next(iter(names)) if len(names) == 1 else None
    if name not in SUMMARIES or any(row.error for row in graded.rows):
        return {}
    return SUMMARIES[name]([(row.answer, item) for row, item in zip(graded.rows, graded.items, strict=True)])


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
