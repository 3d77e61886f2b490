"""What large photographs cost the server, beside one-phase vLLM: `python -m loadtests.large_photographs`.

Starts both servers of a model that costs nothing and sends photographs of 12 megapixels: one again and again, as in the
further turns of a conversation, then several requests at once with new ones. Prints the median time of the former's
answer, and by how much the latter raised the API process's resident memory at its peak.
"""

import argparse
import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from PIL import Image

from loadtests import models
from loadtests.servers import Kind, Server, running

SIZE = (4000, 3000)
ANSWERS = 15
REQUESTS, PICTURES = 4, 4
LOOK_SECONDS = 0.002
WANTED: dict[str, Kind] = {"dfmr": "dfmr", "one-phase": "one-phase"}
OPTIONS = {"load-format": "dummy", "max-model-len": 4096, "enforce-eager": True, "dfmr-factors": "1,2", "dfmr-tau": 1}


def photograph(seed: int) -> str:
    """A JPEG of 12 megapixels as a data URL: light that changes slowly, and a sensor's noise."""
    rng = np.random.default_rng(seed)
    light = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = rng.integers(-6, 7, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    pixels = np.clip(np.asarray(light, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ask(client: httpx.Client, server: Server, urls: list[str]) -> float:
    """Seconds until a question about pictures has its first and only token."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*pictures, {"type": "text", "text": "What is this?"}]
    body = {"model": server.model, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    start = time.perf_counter()
    client.post(f"{server.url}/v1/chat/completions", json=body).raise_for_status()
    return time.perf_counter() - start


@contextmanager
def peak_above(server: Server) -> Iterator[list[int]]:
    """Afterwards holds the most bytes by which the API process was above what it had before."""
    assert server.process is not None
    process, peak, over = server.process, [0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield peak
    finally:
        over.set()
        watch.join()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        models.write(folder / "model", models.SHAPES["tiny"])
        print("starting both servers ...", flush=True)
        with (
            running(WANTED, folder / "model", OPTIONS, folder, print) as servers,
            httpx.Client(timeout=120) as client,
        ):
            compare(servers, client)


def compare(servers: dict[str, Server], client: httpx.Client) -> None:
    """Measure and print, one server at a time."""
    seen = photograph(0)
    new = [[photograph(1 + PICTURES * i + j) for j in range(PICTURES)] for i in range(REQUESTS)]
    print(f"photographs of {SIZE[0]} x {SIZE[1]} pixels, {len(seen) * 3 / 4 / 1e6:.1f} MB each")
    print(f"{REQUESTS} requests at once with {PICTURES} new ones each")
    for name, server in servers.items():
        for _ in range(3):
            ask(client, server, [seen])
        again = median(ask(client, server, [seen]) for _ in range(ANSWERS))
        with peak_above(server) as peak, ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(partial(ask, client, server), new))
        print(f"{name}: {1000 * again:.0f} ms for one that was sent before; {peak[0] / 1e6:.0f} MB for the new ones")


if __name__ == "__main__":
    main()
