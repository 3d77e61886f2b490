"""``dfmr-calibrate``: the thresholds at which *your* pictures keep as many visual tokens as you want to pay for.

Scores are in the units of the served encoder's features, so a threshold does not carry over from one model to another.
This measures your pictures' scores on a running server and finds the thresholds whose mean number of kept tokens comes
nearest to the target from below. What it writes also says which encoder they are for, and how the scores were
distributed, so that the server can refuse them for another encoder and can tell when pictures have changed.
"""

import argparse
import asyncio
import base64
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dfmr_kernels.decide import decide
from server.histogram import histogram
from server.profiles.format import Calibration, Fingerprint

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BISECTIONS = 50
_BINS = 10
_DIGITS = 6
_FEW = 100


class Measured(NamedTuple):
    """Scores of a set of pictures.

    Attributes:
        factors: the candidate pooling factors, ascending.
        tokens: visual tokens at each factor.
        scores: ``(pictures, factors)``.
    """

    factors: tuple[int, ...]
    tokens: tuple[int, ...]
    scores: NDArray[np.float64]


class Found(NamedTuple):
    """Thresholds and what they do to the pictures that they were found on.

    Attributes:
        tau: threshold per pooling factor above 1.
        mean_tokens: mean number of kept visual tokens per picture.
        histogram: pictures per pooling factor.
    """

    tau: dict[int, float]
    mean_tokens: float
    histogram: dict[int, int]


Family = Callable[[Measured, float], dict[int, float]]
"""Thresholds by one number from 0 to 1, which none of them falls with."""


def one_for_all(measured: Measured, share: float) -> dict[int, float]:
    """The same threshold for every factor, at this share of the largest score."""
    tau = round(share * (float(measured.scores.max()) * 1.001 + 1e-6), _DIGITS)
    return {s: tau for s in measured.factors if s > 1}


def by_quantile(measured: Measured, share: float) -> dict[int, float]:
    """A threshold for every factor, in proportion to the median of its own scores and to the root of its tokens.

    A factor that keeps a quarter of the tokens of another has half its threshold, relative to what pictures usually
    score at it. So most pictures get one of the two or three factors around the target and only the simplest and the
    richest get others. With one threshold in proportion to the medians alone, or with fixed shares of pictures for
    every factor, a few pictures at full detail take so many tokens that most of the others have to be pooled by the
    largest factor, which costs more answers than the few gain.
    """
    pooled = [
        (s, n, scores)
        for s, n, scores in zip(measured.factors, measured.tokens, measured.scores.T, strict=True)
        if s > 1
    ]
    usual = {s: (float(np.median(scores)) or float(scores.mean()) or 1.0) * math.sqrt(n) for s, n, scores in pooled}
    highest = max((float(scores.max()) / usual[s] for s, _, scores in pooled), default=0.0) * 1.001
    # A picture passes below its threshold, so that is rounded up.
    return {
        s: math.ceil(share * highest * unit * 10**_DIGITS + 1) / 10**_DIGITS if share else 0.0
        for s, unit in usual.items()
    }


FAMILIES: dict[str, Family] = {"quantile": by_quantile, "single": one_for_all}


def calibrate(measured: Measured, target_tokens: float, family: Family = by_quantile) -> Found:
    """The lowest thresholds of a family whose mean kept tokens do not exceed the target.

    Raises:
        ValueError: not even the largest factor for every picture reaches the target.
    """
    if min(measured.tokens) > target_tokens:
        raise ValueError(
            f"the target of {target_tokens:g} tokens a picture is out of reach: the largest factor that the server "
            f"offers, {measured.factors[-1]}, keeps {min(measured.tokens)}"
        )
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if apply(measured, family(measured, middle)).mean_tokens > target_tokens:
            low = middle
        else:
            high = middle
    return apply(measured, family(measured, high))


def apply(measured: Measured, tau: Mapping[int, float]) -> Found:
    """What thresholds do to a set of pictures."""
    thresholds = [tau.get(s, math.inf) for s in measured.factors]
    chosen = [decide(row.tolist(), thresholds, measured.factors) for row in measured.scores]
    tokens = dict(zip(measured.factors, measured.tokens, strict=True))
    histogram = {s: chosen.count(s) for s in measured.factors}
    return Found(dict(tau), float(np.mean([tokens[s] for s in chosen])), histogram)


def bins(scores: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bins that hold equal shares of the scores ``(pictures,)``, as far as ties allow.

    Returns:
        the inner edges, ascending, and the share of the scores in each bin; a score on an edge is above it.
    """
    inner = np.quantile(scores, np.arange(1, _BINS) / _BINS)
    edges = sorted({float(f"{edge:.{_DIGITS}g}") for edge in inner})
    counts = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)
    return tuple(edges), tuple(np.round(counts / len(scores), 4).tolist())


class Served(NamedTuple):
    """What scored the pictures."""

    fingerprint: Fingerprint
    metric: str
    aggregate: str


async def measure(
    endpoint: str, pictures: Sequence[Path], api_key: str | None = None, concurrency: int = 8
) -> tuple[Measured, Served]:
    """Ask a server's explain route for the scores of picture files, with a progress bar.

    Raises:
        RuntimeError: the server refused a picture; names the file and the reason.
    """
    limit = asyncio.Semaphore(concurrency)
    bar = tqdm(total=len(pictures), unit="picture", desc="measuring")
    url, headers = endpoint.rstrip("/").removesuffix("/v1"), {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300) as client:
        served = await client.get("/v1/dfmr/encoder")
        if served.status_code != httpx.codes.OK:
            raise RuntimeError(f"{endpoint} does not say which encoder it serves: {served.status_code} {served.text}")

        async def candidates(path: Path) -> list[dict[str, float]]:
            async with limit:
                url = "data:image/*;base64," + base64.b64encode(path.read_bytes()).decode()
                reply = await client.post("/v1/dfmr/explain", json={"image_url": {"url": url}, "overlay": False})
            if reply.status_code != httpx.codes.OK:
                raise RuntimeError(f"{path}: {reply.text}")
            bar.update()
            found: list[dict[str, float]] = reply.json()["candidates"]
            return found

        measured = await asyncio.gather(*map(candidates, pictures))
    bar.close()
    scores = Measured(
        factors=tuple(int(c["factor"]) for c in measured[0]),
        tokens=tuple(int(c["visual_tokens"]) for c in measured[0]),
        scores=np.array([[c["score"] for c in picture] for picture in measured]),
    )
    encoder = served.json()
    fingerprint = Fingerprint.model_validate(encoder["fingerprint"])
    return scores, Served(fingerprint, encoder["metric"], encoder["aggregate"])


def among(measured: Measured, factors: Sequence[int]) -> Measured:
    """The same pictures at some of the factors.

    Raises:
        ValueError: the server does not measure one of them, or nothing is left to decide.
    """
    if unknown := sorted(set(factors) - set(measured.factors)):
        raise ValueError(
            f"factor {', '.join(map(str, unknown))} is not measured; the server measures "
            f"{', '.join(map(str, measured.factors))}"
        )
    chosen = [i for i, s in enumerate(measured.factors) if s == 1 or s in factors]
    if len(chosen) < 2:
        raise ValueError("there is no factor above 1, and so nothing to calibrate")
    return Measured(
        tuple(measured.factors[i] for i in chosen),
        tuple(measured.tokens[i] for i in chosen),
        measured.scores[:, chosen],
    )


def profile(measured: Measured, served: Served, found: Found, target_tokens: float) -> dict[str, Any]:
    """The content of a ``dfmr_profile.json``: thresholds, and what they were found on."""
    smallest = measured.factors[1]
    edges, shares = bins(measured.scores[:, 1])
    calibration = Calibration(
        pictures=len(measured.scores),
        target_tokens=target_tokens,
        mean_tokens=round(found.mean_tokens, 2),
        metric=served.metric,
        aggregate=served.aggregate,
        factor=smallest,
        edges=edges,
        shares=shares,
        encoder=served.fingerprint,
    )
    values = set(found.tau.values())
    policy = {"tau": values.pop() if len(values) == 1 else found.tau, "factors": list(measured.factors)}
    return {
        "policy": {**policy, "metric": served.metric, "aggregate": served.aggregate},
        "note": f"calibrated on {len(measured.scores)} pictures to {target_tokens:g} visual tokens a picture",
        "calibration": calibration.model_dump(),
    }


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Picture files among the paths and in the folders among them, sorted."""
    found = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [p for p in found if p.suffix.lower() in SUFFIXES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``dfmr-calibrate``."""
    parser = argparse.ArgumentParser(prog="dfmr-calibrate", description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, help="picture files, or folders of them")
    parser.add_argument(
        "--endpoint", default="http://127.0.0.1:8000", help="a running dfmr-serve (default: %(default)s)"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-tokens", type=float, help="mean visual tokens to keep per picture")
    target.add_argument("--target-keep", type=float, help="the same as a share of all visual tokens, such as 0.25")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write a profile here, and beside it a histogram of the scores"
    )
    parser.add_argument(
        "--thresholds",
        choices=sorted(FAMILIES),
        default="quantile",
        help="one for each factor, by the median of its scores, or a single one (default: %(default)s)",
    )
    parser.add_argument("--factors", help="the pooling factors to choose from, such as 1,2,3 (default: the server's)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("VLLM_API_KEY"),
        help="if the server asks for one; default: $VLLM_API_KEY",
    )
    options = parser.parse_args(arguments)
    pictures = find_pictures(options.pictures)
    if not pictures:
        parser.error("there are no pictures there")
    try:
        measured, served = asyncio.run(measure(options.endpoint, pictures, options.api_key))
        wanted = [int(s) for s in options.factors.split(",")] if options.factors else measured.factors
        measured = among(measured, wanted)
        goal = options.target_tokens or options.target_keep * max(measured.tokens)
        found = calibrate(measured, goal, FAMILIES[options.thresholds])
    except (RuntimeError, ValueError, httpx.HTTPError) as error:
        raise SystemExit(f"dfmr-calibrate: {error}") from error
    shares = ", ".join(f"{count} at factor {s}" for s, count in found.histogram.items())
    thresholds = ", ".join(f"{s}: {tau:.4g}" for s, tau in found.tau.items())
    print(f"tau {{{thresholds}}}")
    print(f"keeps {found.mean_tokens:.1f} of {max(measured.tokens)} visual tokens a picture: {shares}")
    if len(pictures) < _FEW:
        print(f"{len(pictures)} pictures are few; thresholds from {_FEW} or more are steadier", file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(profile(measured, served, found, goal), indent=2) + "\n")
        drawn = options.out.with_suffix(".png")
        scores = {s: measured.scores[:, i] for i, s in enumerate(measured.factors) if s > 1}
        histogram(scores, found.tau, found.histogram).save(drawn)
        print(f"wrote {options.out} and {drawn}", file=sys.stderr)


if __name__ == "__main__":
    main()
