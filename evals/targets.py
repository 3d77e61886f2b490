"""What is promised of a compressed model, checked against results. A missed target is reported as missed."""

from collections.abc import Sequence

from evals.policies import CONTROLS
from evals.results import Results, Target

FULL_ACCURACY = 0.90
KINDS_AT_FULL_ACCURACY = 8
KEPT_ACCURACY = 0.99
TOKEN_SHARE = 0.25
BUILTIN_KINDS = {"builtin:scenes": ("read_large", "count")}
"""Kinds that have to be among those that the uncompressed model masters: reading a number and counting to five."""


def check(results: Results, primary: str, data: str) -> list[Target]:
    """All targets, those that could not be measured as missed.

    Args:
        primary: the DFMR policy that they are about. It is chosen before the run: to take the best of several
            afterwards would be to choose by luck.
        data: name of the data set; the uncompressed model's own targets are for built-in ones only.
    """
    found = _full_model(results, BUILTIN_KINDS[data]) if data in BUILTIN_KINDS else []
    return [*found, *_kept(results, primary), *_beats(results, primary)]


def _full_model(results: Results, needed: Sequence[str]) -> list[Target]:
    full = results.policy("full")
    accuracy = {kind: found.accuracy.value for kind, found in full.kinds.items()} if full else {}
    mastered = sum(value >= FULL_ACCURACY for value in accuracy.values()) if full else None
    name = f"kinds that the uncompressed model answers at {FULL_ACCURACY:.0%} or more"
    targets = [_target(name, ">=", KINDS_AT_FULL_ACCURACY, mastered)]
    return targets + [_target(f"uncompressed accuracy on {k}", ">=", FULL_ACCURACY, accuracy.get(k)) for k in needed]


def _kept(results: Results, primary: str) -> list[Target]:
    full, ours = results.policy("full"), results.policy(primary)
    kept = None
    if full and ours and full.accuracy and ours.accuracy and full.accuracy.value > 0:
        kept = ours.accuracy.value / full.accuracy.value
    return [
        _target(f"accuracy of {primary} as a share of uncompressed", ">=", KEPT_ACCURACY, kept),
        _target(
            f"visual tokens of {primary} as a share of uncompressed", "<=", TOKEN_SHARE, ours.share if ours else None
        ),
    ]


def _beats(results: Results, primary: str) -> list[Target]:
    targets = []
    for control in CONTROLS:
        wanted = f"{control}@{primary}"
        fair = (c for c in results.comparisons if c.control == wanted and c.matched and not c.errors)
        compared = next(fair, None)
        name = f"{primary} minus {control} at equal mean tokens: lower end of the 95 % interval"
        targets.append(_target(name, ">", 0.0, compared.difference.low if compared else None))
    return targets


def _target(name: str, relation: str, bound: float, measured: float | None) -> Target:
    passed = (
        measured is not None
        and {
            ">=": measured >= bound,
            "<=": measured <= bound,
            ">": measured > bound,
        }[relation]
    )
    rounded = None if measured is None else round(measured, 4)
    return Target(name=name, target=f"{relation} {bound:g}", measured=rounded, passed=passed)
