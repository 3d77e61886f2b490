"""What reduction costs beside the encoder whose output it reduces, by metric: `python benchmarks/reduce_cost.py`.

Times the forward of a CLIP ViT-L/14 at 336 px, with random weights, and `dfmr_kernels.reduce` of its feature maps under
each metric, in turn in one run, on the GPU where there is one. Prints the median of each, its share of the encoder's
time, and what the metric adds to std, whose windows the pooling measures anyway.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from dfmr_kernels import METRICS, reduce, thresholds

CANDIDATES = (1, 2, 3, 4, 6, 8, 12)
GRID = (24, 24)
VIT_L_14_336 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Milliseconds that `work` takes, and what it gives: on a GPU by the clock, on a CPU of all its threads' time.

    Other programs on the machine lengthen the latter far less than the time by the clock.
    """
    if device == "cpu":
        start = time.process_time()
        result = work()
        return 1e3 * (time.process_time() - start), result
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start), result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="pictures per call")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each, after two to warm up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), metavar="NAME", help="default: all of ours")
    chosen = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, chosen.dtype)
    encoder = CLIPVisionModel(VIT_L_14_336).to(device, dtype).eval()
    pixels = torch.randint(0, 256, (chosen.batch, 3, 336, 336), dtype=torch.uint8, device=device)
    inputs = pixels.to(dtype) / 127.5 - 1
    rows = [thresholds(GRID, CANDIDATES, tau=0.5)] * chosen.batch

    encode_ms: list[float] = []
    reduce_ms: dict[str, list[float]] = {name: [] for name in ("std", *chosen.metrics)}
    for _ in range(chosen.runs + 2):
        taken, encoded = timed(partial(encoder, inputs), device)
        encode_ms.append(taken)
        features = encoded.last_hidden_state[:, 1:].unflatten(1, GRID)
        for name, times in reduce_ms.items():
            times.append(timed(partial(reduce, features, CANDIDATES, rows, "mean", name, pixels), device)[0])
    encode = median(encode_ms[2:])
    print(f"{chosen.batch} x 336x336 {chosen.dtype} on {device}, median of {chosen.runs}: encode {encode:.2f} ms")
    print(f"{'metric':16} {'reduce ms':>10} {'of encode':>10} {'beside std ms':>14}")
    plain = median(reduce_ms["std"][2:])
    for name, times in reduce_ms.items():
        taken = median(times[2:])
        print(f"{name:16} {taken:10.2f} {taken / encode:10.2%} {taken - plain:+14.2f}")


if __name__ == "__main__":
    main()
