"""The matrix of policies: names, and the change to each request that a name stands for.

===================  ================================================================================================
``full``             every visual token
``dfmr``             the server's own policy
``dfmr@0.5``         one threshold for all factors
``dfmr@x0.8``        the server's thresholds times 0.8
``dfmr@25%``         the server's thresholds, scaled on calibration pictures to keep at most 25 % of the tokens
``fixed@3``          factor 3 for every picture
``downscaled@3``     the client shrinks pictures to a third of the encoder's side, then factor 3
``drop-cls@3``       as many tokens as factor 3 keeps: those most similar to the CLS token
``drop-random@3``    as many tokens as factor 3 keeps, at random
``CONTROL@dfmr...``  the control at the mean tokens of that DFMR policy; ``random`` exists in this form only
``CONTROL``          the same, for each DFMR policy of the matrix
===================  ================================================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from evals.conditions import Change
from evals.items import Item
from evals.matching import mixed_factors, shuffled_factors

Family = Literal["full", "dfmr", "fixed", "random", "downscaled", "drop-cls", "drop-random"]
CONTROLS: tuple[Family, ...] = ("fixed", "random", "downscaled", "drop-cls", "drop-random")
DEFAULT_MATRIX = ("full", "dfmr", *CONTROLS)


@dataclass(frozen=True)
class Policy:
    """A parsed name.

    Attributes:
        reference: for a control, the DFMR policy whose mean tokens it has to meet; else None.
        factor: for a control without a reference.
        tau, scale, share: for DFMR, whichever its name holds.
    """

    name: str
    family: Family
    reference: str | None = None
    factor: int | None = None
    tau: float | None = None
    scale: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Plan:
    """How one request differs: its ``dfmr`` object, None for none, and a change to its pictures."""

    dfmr: dict[str, Any] | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Offer:
    """What an endpoint can do.

    Attributes:
        tokens: visual tokens of a picture at each factor on offer; empty where the endpoint knows no ``dfmr``.
        original: visual tokens of an uncompressed picture.
        taus: the server's threshold for each factor above the smallest.
    """

    tokens: Mapping[int, int] = field(default_factory=dict)
    original: int | None = None
    taus: Mapping[int, float] = field(default_factory=dict)


def parse(name: str) -> Policy:
    """The policy of that name. Raises ValueError where there is none."""
    family, _, argument = name.partition("@")
    if name == "full":
        return Policy(name, "full")
    if family == "dfmr":
        return _parse_dfmr(name, argument)
    for control in CONTROLS:
        if family != control:
            continue
        if argument == "dfmr" or argument.startswith("dfmr@"):
            parse(argument)
            return Policy(name, control, reference=argument)
        if control != "random" and argument.isdecimal() and int(argument) > 0:
            return Policy(name, control, factor=int(argument))
        if not argument:
            return Policy(name, control)
    raise ValueError(f"unknown policy {name!r}; see the table in docs/evaluation.md")


def _parse_dfmr(name: str, argument: str) -> Policy:
    if name == "dfmr":
        return Policy(name, "dfmr")
    try:
        if argument.startswith("x"):
            policy = Policy(name, "dfmr", scale=float(argument[1:]))
        elif argument.endswith("%"):
            policy = Policy(name, "dfmr", share=float(argument[:-1]) / 100)
        else:
            policy = Policy(name, "dfmr", tau=float(argument))
    except ValueError:
        raise ValueError(f"policy {name!r}: a number, x and a number, or a percentage follows the @") from None
    if not all(value is None or 0 <= value < float("inf") for value in (policy.tau, policy.scale, policy.share)):
        raise ValueError(f"policy {name!r}: out of range")
    return policy


def matrix(names: Sequence[str]) -> list[Policy]:
    """Policies in the order in which they run: those that others refer to first.

    Bare controls become one for each DFMR policy; a control's DFMR policy joins the matrix if it is missing.

    Raises:
        ValueError: a name is unknown, or a bare control has no DFMR policy to refer to.
    """
    parsed = [parse(name) for name in names]
    references = [policy.name for policy in parsed if policy.family == "dfmr"]
    controls: list[Policy] = []
    for policy in parsed:
        if policy.family not in CONTROLS:
            continue
        if policy.reference or policy.factor:
            controls.append(policy)
        elif not references:
            raise ValueError(
                f"{policy.name}: which DFMR policy is it a control of? Add one, or write {policy.name}@dfmr"
            )
        else:
            controls += [parse(f"{policy.name}@{reference}") for reference in references]
    first = [policy for policy in parsed if policy.family not in CONTROLS]
    first += [parse(control.reference) for control in controls if control.reference]
    return list(dict.fromkeys([*first, *controls]))


def dfmr_body(policy: Policy, offer: Offer, scale: float | None) -> dict[str, Any]:
    """The ``dfmr`` object of a DFMR policy; ``scale`` is what calibration found for a token target."""
    body: dict[str, Any] = {"enabled": True}
    scale = policy.scale if policy.scale is not None else scale
    if policy.tau is not None:
        body["tau"] = policy.tau
    elif scale is not None:
        body["tau"] = {str(s): round(tau * scale, 9) for s, tau in offer.taus.items()}
    return body


def control_plan(family: Family, factor: int, offer: Offer) -> Plan:
    """One request of a control at one factor."""
    body: dict[str, Any] = {"enabled": True, "factors": [factor]}
    if family in ("drop-cls", "drop-random"):
        body["method"] = family
    change = Change("downscale", factor) if family == "downscaled" and factor > 1 else None
    return Plan(body if offer.tokens else None, change)


def plans(
    policy: Policy,
    items: Sequence[Item],
    offer: Offer,
    *,
    scale: float | None = None,
    reference: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> dict[str, Plan]:
    """Every item's request under a policy.

    Args:
        scale: of a DFMR policy with a token target.
        reference: for a control, the factors that its DFMR policy chose, by item and picture. Items that are missing
            there (their request failed) get the control's factor all the same.

    Returns:
        plans by item id.
    """
    if policy.family == "full":
        return {item.id: Plan({"enabled": False} if offer.tokens else None) for item in items}
    if policy.family == "dfmr":
        body = dfmr_body(policy, offer, scale)
        return {item.id: Plan(body) for item in items}
    if policy.factor is not None:
        return {item.id: control_plan(policy.family, policy.factor, offer) for item in items}
    if reference is None:
        raise ValueError(f"{policy.name}: what {policy.reference} chose is not known")
    ordered = list(items)
    Random(f"order/{seed}").shuffle(ordered)
    ordered.sort(key=lambda item: item.kind)
    chosen = [list(reference.get(item.id) or [_typical(reference)] * len(item.pictures)) for item in ordered]
    if policy.family == "random":
        dealt = shuffled_factors(chosen, offer.tokens, seed)
    else:
        spent = sum(offer.tokens[s] for factors in chosen for s in factors)
        dealt = mixed_factors([len(f) for f in chosen], offer.tokens, spent / sum(len(f) for f in chosen))
    return {item.id: control_plan(policy.family, s, offer) for item, s in zip(ordered, dealt, strict=True)}


def _typical(reference: Mapping[str, Sequence[int]]) -> int:
    """The median factor."""
    factors = sorted(s for chosen in reference.values() for s in chosen)
    return factors[len(factors) // 2]
