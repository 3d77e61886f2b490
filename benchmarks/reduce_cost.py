"""What reduction costs beside the encoder whose output it reduces: `python benchmarks/reduce_cost.py`.

Times the forward of a CLIP ViT-L/14 at 336 px, with random weights, and `dfmr_kernels.reduce` of its feature maps, in
turn in one run, on the GPU where there is one, and prints the median of each and their ratio.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from dfmr_kernels import reduce, thresholds

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


def timed(work: Callable[[], object], device: str) -> float:
    """Milliseconds that `work` takes, the device's part included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="pictures per call")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each, after two to warm up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    chosen = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, chosen.dtype)
    encoder = CLIPVisionModel(VIT_L_14_336).to(device, dtype).eval()
    pixels = torch.randn(chosen.batch, 3, 336, 336, device=device, dtype=dtype)
    rows = [thresholds(GRID, CANDIDATES, tau=0.5)] * chosen.batch

    encode_ms, reduce_ms = [], []
    for _ in range(chosen.runs + 2):
        encode_ms.append(timed(partial(encoder, pixels), device))
        features = encoder(pixels).last_hidden_state[:, 1:].unflatten(1, GRID)
        reduce_ms.append(timed(partial(reduce, features, CANDIDATES, rows), device))
    encode, reduction = median(encode_ms[2:]), median(reduce_ms[2:])
    print(f"{chosen.batch} x 336x336 {chosen.dtype} on {device}, median of {chosen.runs}:")
    print(f"encode {encode:.2f} ms, reduce {reduction:.2f} ms, ratio {100 * reduction / encode:.2f} %")


if __name__ == "__main__":
    main()
