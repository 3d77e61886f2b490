"""The one result type, of which JSON, CSV and the page are renderings."""

import csv
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evals.bootstrap import Estimate


class KindResult(BaseModel):
    """One policy on one kind of question."""

    questions: int
    accuracy: Estimate
    minus_full: Estimate | None = None
    visual_tokens: float | None = None


class PolicyResult(BaseModel):
    """One policy on all questions.

    Attributes:
        status: ``not offered`` policies have no figures, and ``reason`` says why.
        accuracy: failed requests count as wrong.
        visual_tokens: kept per picture on average; None where the endpoint does not say.
        share: of the uncompressed visual tokens.
        factors: how many pictures got which pooling factor.
        ttft_p50: seconds, over requests none of whose pictures came from a cache if there are any such.
        official: a public benchmark's own figures.
    """

    name: str
    family: str
    reference: str | None = None
    status: Literal["measured", "not offered"] = "measured"
    reason: str = ""
    questions: int = 0
    errors: int = 0
    truncated: int = 0
    accuracy: Estimate | None = None
    minus_full: Estimate | None = None
    kinds: dict[str, KindResult] = {}
    visual_tokens: float | None = None
    share: float | None = None
    prompt_tokens: float | None = None
    factors: dict[int, int] = {}
    cached_share: float | None = None
    ttft_p50: float | None = None
    seconds_p50: float | None = None
    official: dict[str, float] = {}


class Comparison(BaseModel):
    """A DFMR policy against one control.

    Attributes:
        difference: accuracy of the policy minus that of the control, paired.
        matched: whether their mean visual tokens are within 1 % of each other.
        errors: failed requests of either, which count as wrong and so would decide.
    """

    policy: str
    control: str
    difference: Estimate
    policy_tokens: float | None
    control_tokens: float | None
    matched: bool
    errors: int = 0


class Target(BaseModel):
    """Something that was promised, and what came of it. ``measured`` is None where it could not be measured."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    target: str
    measured: float | None
    passed: bool = Field(alias="pass")


class Results(BaseModel):
    """One run."""

    run: dict[str, Any]
    policies: list[PolicyResult]
    comparisons: list[Comparison] = []
    targets: list[Target] = []

    def policy(self, name: str) -> PolicyResult | None:
        """The measured policy of that name."""
        return next((p for p in self.policies if p.name == name and p.status == "measured"), None)


def write_json(path: Path, results: BaseModel) -> None:
    """Write any result as JSON."""
    path.write_text(json.dumps(results.model_dump(mode="json", by_alias=True), indent=1) + "\n")


def write_csv(path: Path, results: Results) -> None:
    """One row for each policy and kind, ``all`` among the kinds."""
    columns = [
        "policy",
        "kind",
        "questions",
        "accuracy",
        "low",
        "high",
        "minus_full",
        "minus_full_low",
        "minus_full_high",
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "visual_tokens", "ttft_p50", "errors"])
        for policy in results.policies:
            if policy.accuracy is None:
                writer.writerow([policy.name, "all", 0, policy.status])
                continue
            overall = KindResult(
                questions=policy.questions,
                accuracy=policy.accuracy,
                minus_full=policy.minus_full,
                visual_tokens=policy.visual_tokens,
            )
            for kind, found in {"all": overall, **policy.kinds}.items():
                last = [policy.ttft_p50, policy.errors] if kind == "all" else []
                row = [policy.name, kind, found.questions, *_three(found.accuracy), *_three(found.minus_full)]
                writer.writerow([*row, _rounded(found.visual_tokens), *last])


def _three(estimate: Estimate | None) -> list[float | None]:
    if estimate is None:
        return [None] * 3
    return [_rounded(estimate.value), _rounded(estimate.low), _rounded(estimate.high)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
