"""``dfmr-calibrate``: the threshold at which *your* pictures keep as many visual tokens as you want to pay for.

Scores are in the units of the served encoder's features, so a threshold does not carry over from one model to another.
This measures your pictures' scores on a running server and finds the one tau whose mean number of kept tokens comes
nearest to the target from below.
"""

import argparse
import asyncio
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dfmr_kernels.decide import decide

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BISECTIONS = 50


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


class Calibration(NamedTuple):
    """A threshold and what it does to the pictures that it was found on.

    Attributes:
        tau: the threshold.
        mean_tokens: mean number of kept visual tokens per picture.
        histogram: pictures per pooling factor.
    """

    tau: float
    mean_tokens: float
    histogram: dict[int, int]


def calibrate(measured: Measured, target_tokens: float) -> Calibration:
    """The smallest tau whose mean kept tokens do not exceed the target; mean tokens never grow with tau.

    Raises:
        ValueError: not even the largest factor for every picture reaches the target.
    """
    if min(measured.tokens) > target_tokens:
        raise ValueError(
            f"the target of {target_tokens:g} tokens a picture is out of reach: the largest factor that the server "
            f"offers, {measured.factors[-1]}, keeps {min(measured.tokens)}"
        )
    low, high = 0.0, float(measured.scores.max()) * 1.001 + 1e-6
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if apply(measured, middle).mean_tokens > target_tokens:
            low = middle
        else:
            high = middle
    return apply(measured, high)


def apply(measured: Measured, tau: float) -> Calibration:
    """What one threshold for all factors does to a set of pictures."""
    thresholds = [tau] * len(measured.factors)
    chosen = [decide(row.tolist(), thresholds, measured.factors) for row in measured.scores]
    tokens = dict(zip(measured.factors, measured.tokens, strict=True))
    histogram = {s: chosen.count(s) for s in measured.factors}
    return Calibration(tau, float(np.mean([tokens[s] for s in chosen])), histogram)


async def measure(endpoint: str, pictures: Sequence[Path], concurrency: int = 8) -> Measured:
    """Ask a server's explain route for the scores of picture files, with a progress bar.

    Raises:
        RuntimeError: the server refused a picture; names the file and the reason.
    """
    limit = asyncio.Semaphore(concurrency)
    bar = tqdm(total=len(pictures), unit="picture", desc="measuring")

    async with httpx.AsyncClient(base_url=endpoint.rstrip("/").removesuffix("/v1"), timeout=300) as client:

        async def candidates(path: Path) -> list[dict[str, float]]:
            url = "data:image/*;base64," + base64.b64encode(path.read_bytes()).decode()
            async with limit:
                reply = await client.post("/v1/dfmr/explain", json={"image_url": {"url": url}, "overlay": False})
            if reply.status_code != httpx.codes.OK:
                raise RuntimeError(f"{path}: {reply.text}")
            bar.update()
            found: list[dict[str, float]] = reply.json()["candidates"]
            return found

        measured = await asyncio.gather(*map(candidates, pictures))
    bar.close()
    return Measured(
        factors=tuple(int(c["factor"]) for c in measured[0]),
        tokens=tuple(int(c["visual_tokens"]) for c in measured[0]),
        scores=np.array([[c["score"] for c in picture] for picture in measured]),
    )


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
    parser.add_argument("--out", type=Path, help="write a dfmr_profile.json for the checkpoint's folder here")
    options = parser.parse_args(arguments)
    pictures = find_pictures(options.pictures)
    if not pictures:
        parser.error("there are no pictures there")
    try:
        measured = asyncio.run(measure(options.endpoint, pictures))
        goal = options.target_tokens or options.target_keep * max(measured.tokens)
        found = calibrate(measured, goal)
    except (RuntimeError, ValueError, httpx.HTTPError) as error:
        raise SystemExit(f"dfmr-calibrate: {error}") from error
    shares = ", ".join(f"{count} at factor {s}" for s, count in found.histogram.items())
    print(
        f"tau {found.tau:.4g} keeps {found.mean_tokens:.1f} of {max(measured.tokens)} visual tokens a picture: {shares}"
    )
    if options.out:
        note = f"calibrated on {len(pictures)} pictures to {goal:g} visual tokens a picture"
        policy = {"tau": round(found.tau, 6), "factors": list(measured.factors)}
        options.out.write_text(json.dumps({"policy": policy, "note": note}, indent=2) + "\n")
        print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
