"""Runs a matrix of policies: DFMR first, then its controls at the tokens that DFMR turned out to spend."""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from evals import pictures
from evals.client import Endpoint, NotOfferedError
from evals.items import Item
from evals.matching import Scores, scale_for
from evals.pictures import Source
from evals.policies import Plan, Policy, plans
from evals.runner import Asking, run_policy
from evals.store import Row, Store

CALIBRATION_PICTURES = 300
"""Different pictures that are scored to find thresholds for a token target."""


@dataclass
class Measurement:
    """What became of the matrix besides the answers.

    Attributes:
        refused: why policies were not measured, by name.
        scales: multiples of the server's thresholds that calibration found, by policy.
    """

    refused: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)


async def measure(
    endpoint: Endpoint,
    items: Sequence[Item],
    policies: Sequence[Policy],
    store: Store,
    asking: Asking,
    calibration: Callable[[], Sequence[Item]],
) -> Measurement:
    """Answer every item under every policy that the endpoint offers.

    Args:
        policies: in an order in which DFMR policies come before their controls, as from `policies.matrix`.
        calibration: items whose pictures token targets are calibrated on; only called if there is such a target.
    """
    made = Measurement()
    known: list[Scores] = []
    for policy in policies:
        try:
            _offered(policy, endpoint, made)
            if policy.share is not None:
                known = known or await _calibration_scores(endpoint, calibration(), asking)
                made.scales[policy.name] = _scale(policy.share, known, endpoint)
            reference = None
            if policy.reference is not None:
                rows = store.rows(policy.reference)
                reference = {name: _dealt(row) for name, row in rows.items() if row.error is None}
            planned = plans(
                policy,
                items,
                endpoint.offer,
                scale=made.scales.get(policy.name),
                reference=reference,
                seed=asking.seed,
            )
            for body in _distinct(planned.values()):
                await endpoint.check(body)
        except NotOfferedError as error:
            made.refused[policy.name] = str(error)
            continue
        await run_policy(endpoint, policy.name, items, planned, store, asking)
    return made


def _offered(policy: Policy, endpoint: Endpoint, made: Measurement) -> None:
    """Raise NotOfferedError where it is clear without asking that a policy cannot be measured."""
    if policy.reference in made.refused:
        raise NotOfferedError(f"{policy.reference} was not measured")
    if endpoint.offer.tokens or policy.family == "full":
        return
    if policy.family == "downscaled" and policy.factor is not None:
        return
    raise NotOfferedError("the endpoint knows no dfmr object")


def _dealt(row: Row) -> list[int]:
    """The factors that a control deals out anew."""
    factors = [factor for factor in row.factors if factor is not None]
    if len(factors) < len(row.factors):
        raise NotOfferedError("pictures were divided into regions: there is no factor of a picture to deal out")
    return factors


async def _calibration_scores(endpoint: Endpoint, items: Sequence[Item], asking: Asking) -> list[Scores]:
    """Scores of some of the items' pictures, each as often as it is asked about; what is no picture is left out.

    Raises:
        NotOfferedError: the endpoint does not tell scores, or knows none of the pictures.
    """
    sources = [source for item in items for source in item.pictures]
    distinct = list(dict.fromkeys(sources))
    random.Random(f"calibration/{asking.seed}").shuffle(distinct)  # A file may be sorted by kind.
    urls: dict[Source, str] = {}
    for source in distinct[:CALIBRATION_PICTURES]:
        with suppress(OSError, ValueError):
            urls[source] = pictures.upload_url(source)
    scores = await endpoint.scores(list(urls.values()), asking.concurrency)
    known = {source: found for source, found in zip(urls, scores, strict=True) if found is not None}
    if not known:
        raise NotOfferedError("a token target needs pictures to calibrate on, and none could be read")
    return [known[source] for source in sources if source in known]


def _scale(share: float, known: Sequence[Scores], endpoint: Endpoint) -> float:
    assert endpoint.offer.original is not None
    try:
        return scale_for(known, endpoint.offer.taus, endpoint.offer.tokens, share * endpoint.offer.original)
    except ValueError as error:
        raise NotOfferedError(str(error)) from error


def _distinct(planned: Iterable[Plan]) -> list[dict[str, Any]]:
    """The different ``dfmr`` objects among plans."""
    bodies = (plan.dfmr for plan in planned if plan.dfmr is not None)
    return list({repr(sorted(body.items())): body for body in bodies}.values())
