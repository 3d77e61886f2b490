"""The same questions under field conditions: what becomes of accuracy, of the score and of the tokens it decides on."""

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel

from evals.bootstrap import Estimate, mean, paired_difference
from evals.client import Endpoint, NotOfferedError
from evals.conditions import CONDITIONS, Change
from evals.items import Item
from evals.policies import Policy, plans
from evals.report import html
from evals.report.plot import COLORS, small_multiples
from evals.results import Target
from evals.runner import Asking, run_policy
from evals.scoring import Scorer
from evals.store import Row, Store
from evals.summary import Graded, tokens_per_picture

CLEAN = "clean"
TOKENS_UP = 1.10
"""A condition that adds no information and costs this many times the tokens reads as rich."""


class Cell(BaseModel):
    """One policy under one condition and amount; ``clean`` has none.

    Attributes:
        minus_clean: accuracy minus that on clean pictures, paired.
        score: DFMR's mean score per picture; ``score_ratio`` and ``tokens_ratio`` are relative to clean pictures.
    """

    condition: str
    amount: float | None
    policy: str
    questions: int
    errors: int
    accuracy: Estimate
    minus_clean: Estimate | None
    score: float | None
    score_ratio: float | None
    visual_tokens: float | None
    tokens_ratio: float | None


class Finding(BaseModel):
    """Where the score is wrong about a picture.

    Attributes:
        reading: ``rich``: it asks for more tokens though the condition shows nothing new. ``poor``: compression loses
            answers that full detail keeps, on pictures that got fewer tokens than usual.
        subject: a condition with its amount, or ``kind:NAME`` of clean pictures.
    """

    reading: Literal["rich", "poor"]
    subject: str
    policy: str
    tokens_ratio: float
    minus_full: Estimate


class FieldResults(BaseModel):
    """All conditions."""

    run: dict[str, Any]
    cells: list[Cell]
    findings: list[Finding]
    not_offered: dict[str, str] = {}
    targets: list[Target] = []


async def measure(
    endpoint: Endpoint,
    items: Sequence[Item],
    policies: Sequence[Policy],
    changes: Sequence[Change],
    store: Store,
    asking: Asking,
) -> dict[str, str]:
    """Answer every item clean and under every change; returns the policies that are not offered, and why."""
    refused: dict[str, str] = {}
    for policy in policies:
        planned = plans(policy, items, endpoint.offer)
        try:
            if policy.family != "full" and not endpoint.offer.tokens:
                raise NotOfferedError("the endpoint knows no dfmr object")
            await endpoint.check(next(iter(planned.values())).dfmr)
        except NotOfferedError as error:
            refused[policy.name] = str(error)
            continue
        for change in [None, *changes]:
            await run_policy(endpoint, policy.name, items, planned, store, asking, change)
    return refused


def summarise(
    items: Sequence[Item], policies: Sequence[Policy], changes: Sequence[Change], store: Store, default: Scorer
) -> tuple[list[Cell], list[Finding]]:
    """Figures of every condition, and what the score reads wrongly."""
    graded = {
        (policy.name, str(change) if change else CLEAN): Graded(
            items, store.rows(policy.name, str(change) if change else None), default
        )
        for policy in policies
        for change in [None, *changes]
    }
    graded = {key: value for key, value in graded.items() if value.rows}
    cells = []
    for change in [None, *changes]:
        for policy in policies:
            found = graded.get((policy.name, str(change) if change else CLEAN))
            if found is not None:
                cells.append(_cell(change, policy.name, found, graded[policy.name, CLEAN]))
    return cells, _findings(policies, changes, graded)


def _cell(change: Change | None, policy: str, found: Graded, clean: Graded) -> Cell:
    score, clean_score = _score(found.rows), _score(clean.rows)
    tokens, clean_tokens = tokens_per_picture(found.rows), tokens_per_picture(clean.rows)
    return Cell(
        condition=change.name if change else CLEAN,
        amount=change.amount if change else None,
        policy=policy,
        questions=len(found.scores),
        errors=sum(row.error is not None for row in found.rows),
        accuracy=mean(found.scores, found.groups),
        minus_clean=paired_difference(found.scores, clean.scores, found.groups) if change else None,
        score=score,
        score_ratio=_ratio(score, clean_score),
        visual_tokens=tokens,
        tokens_ratio=_ratio(tokens, clean_tokens),
    )


def _findings(
    policies: Sequence[Policy], changes: Sequence[Change], graded: Mapping[tuple[str, str], Graded]
) -> list[Finding]:
    found = []
    for policy in policies:
        clean, full = graded.get((policy.name, CLEAN)), graded.get(("full", CLEAN))
        if policy.family == "full" or clean is None or full is None:
            continue
        usual = tokens_per_picture(clean.rows)
        for name in map(str, changes):
            ours, theirs = graded.get((policy.name, name)), graded.get(("full", name))
            if ours is None or theirs is None:
                continue
            gained = paired_difference(theirs.scores, full.scores, theirs.groups).low > 0
            ratio, lost = _ratio(tokens_per_picture(ours.rows), usual), _lost(ours, theirs, None)
            if ratio and ratio >= TOKENS_UP and not gained:
                found.append(
                    Finding(reading="rich", subject=name, policy=policy.name, tokens_ratio=ratio, minus_full=lost)
                )
            elif ratio and ratio < 1 and lost.high < 0:
                found.append(
                    Finding(reading="poor", subject=name, policy=policy.name, tokens_ratio=ratio, minus_full=lost)
                )
        for kind in sorted(set(clean.kinds.values())):
            rows = [row for row, item in zip(clean.rows, clean.items, strict=True) if item.kind == kind]
            ratio, lost = _ratio(tokens_per_picture(rows), usual), _lost(clean, full, kind)
            if ratio and ratio < 1 and lost.high < 0:
                subject = f"kind:{kind}"
                found.append(
                    Finding(reading="poor", subject=subject, policy=policy.name, tokens_ratio=ratio, minus_full=lost)
                )
    return found


def _lost(ours: Graded, full: Graded, kind: str | None) -> Estimate:
    return paired_difference(ours.of_kind(kind), full.of_kind(kind), ours.groups)


def _score(rows: Sequence[Row]) -> float | None:
    scores = [score for row in rows for score in row.scores]
    return fmean(scores) if scores else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def write_csv(path: Path, results: FieldResults) -> None:
    """One row for each condition, amount and policy."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        plain = [name for name in Cell.model_fields if name not in ("accuracy", "minus_clean")]
        writer.writerow([*plain, "accuracy", "low", "high", "minus_clean"])
        for cell in results.cells:
            change = None if cell.minus_clean is None else round(cell.minus_clean.value, 4)
            accuracy = [round(value, 4) for value in (cell.accuracy.value, cell.accuracy.low, cell.accuracy.high)]
            writer.writerow([*(getattr(cell, name) for name in plain), *accuracy, change])


def render(results: FieldResults) -> str:
    """The page as HTML."""
    names = list(dict.fromkeys(cell.policy for cell in results.cells))
    palette = [COLORS["dfmr"], COLORS["fixed"], COLORS["drop-cls"], COLORS["downscaled"]]
    colors = {"full": COLORS["full"]} | dict(zip([n for n in names if n != "full"], palette * len(names), strict=False))
    parts = [
        f"<h1>Field conditions: {escape(str(results.run.get('model')))}</h1>",
        f'<div class="facts"><span>data <b>{escape(str(results.run.get("data")))}</b></span>'
        f"<span>questions <b>{results.cells[0].questions if results.cells else 0}</b></span></div>",
        "<h2>Accuracy</h2>",
        f"<figure>{small_multiples(_panels(results, names, 'accuracy'), 'accuracy', True, colors)}</figure>",
    ]
    measured = [name for name in names if name != "full"]
    ratios: tuple[tuple[Literal["score_ratio", "tokens_ratio"], str], ...] = (
        ("score_ratio", "Score, relative to clean"),
        ("tokens_ratio", "Visual tokens, relative to clean"),
    )
    for field, title in ratios:
        if measured:
            figure = small_multiples(_panels(results, measured, field), "times clean", False, colors)
            parts += [f"<h2>{title}</h2>", f"<figure>{figure}</figure>"]
    parts += [
        "<h2>What the score reads wrongly</h2>",
        _findings_table(results),
        "<h2>All figures</h2>",
        _cells_table(results),
    ]
    return html.page("Field conditions", parts)


def _panels(
    results: FieldResults, policies: Sequence[str], field: Literal["accuracy", "score_ratio", "tokens_ratio"]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    def value(cell: Cell) -> float:
        return cell.accuracy.value if field == "accuracy" else float(getattr(cell, field) or 0)

    clean = {cell.policy: (0.0, value(cell)) for cell in results.cells if cell.condition == CLEAN}
    return {
        condition: {
            policy: [
                clean[policy],
                *((c.amount or 0.0, value(c)) for c in results.cells if (c.condition, c.policy) == (condition, policy)),
            ]
            for policy in policies
        }
        for condition in CONDITIONS
        if any(cell.condition == condition for cell in results.cells)
    }


def _findings_table(results: FieldResults) -> str:
    if not results.findings:
        return "<p>Nothing, by these measures.</p>"
    why = {"rich": "more tokens, nothing new to see", "poor": "fewer tokens, answers lost"}
    rows = [
        [
            escape(f.subject),
            escape(f.policy),
            f"reads as {f.reading}: {why[f.reading]}",
            f"{f.tokens_ratio:.2f}",
            html.points(f.minus_full),
        ]
        for f in results.findings
    ]
    return html.table(["", "policy", "", "tokens, times clean mean", "minus full, points"], rows)


def _cells_table(results: FieldResults) -> str:
    rows = [
        [
            f"{escape(c.condition)} {'' if c.amount is None else f'{c.amount:g}'}",
            escape(c.policy),
            html.interval(c.accuracy),
            html.points(c.minus_clean),
            html.number(c.score, 3),
            html.number(c.score_ratio, 2),
            html.number(c.visual_tokens),
            html.number(c.tokens_ratio, 2),
            str(c.errors),
        ]
        for c in results.cells
    ]
    head = [
        "condition",
        "policy",
        "accuracy",
        "minus clean, points",
        "score",
        "times<br>clean",
        "visual tokens",
        "times<br>clean",
        "errors",
    ]
    return html.table(head, rows)
