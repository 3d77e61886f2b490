"""``vllm bench serve``, called in this process so that its imports are paid once."""

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtests.servers import Samples, Server
from loadtests.workload import Workload

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """How requests arrive: so many at a time (closed loop), or so many a second in a Poisson process (open loop).

    Attributes:
        seed: of the arrivals and of random pictures; the same again for the same seed.
    """

    concurrency: int | None = None
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """What came of one request; times in seconds.

    Attributes:
        itl: gaps between the chunks of the answer.
        seen: whether its pictures were asked about before.
    """

    ttft: float
    itl: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    seen: bool = False
    error: str = ""

    @property
    def e2e(self) -> float:
        return self.ttft + sum(self.itl)


@dataclass(frozen=True)
class Run:
    """One load against one server.

    Attributes:
        seconds: from the first request sent to the last answered.
        before, after: the server's metrics.
        kv_blocks: most KV-cache blocks in use when looked at, every half second.
    """

    requests: tuple[Request, ...]
    seconds: float
    pictures: int
    before: Samples
    after: Samples
    kv_blocks: float

    def grown(self, name: str, **labels: str) -> float:
        """How much a counter of the server grew."""
        return self.after.total(name, **labels) - self.before.total(name, **labels)


async def run(server: Server, work: Workload, body: dict[str, Any], output: int, load: Load) -> Run:
    """Send a workload. ``vllm bench serve`` prints its own report."""
    arguments = ["--dataset-name", "custom_image", "--dataset-path", str(work.path), "--disable-shuffle"]
    arguments += ["--custom-output-len", str(output)]
    return await _bench(server, arguments, len(work.seen), work.pictures, work.seen, body, load)


async def run_random(
    server: Server, requests: int, pictures: int, text: int, output: int, body: dict[str, Any], load: Load
) -> Run:
    """Send vLLM's own random pictures and texts (data set ``random-mm``)."""
    buckets = "{(256, 256, 1): 0.5, (720, 1280, 1): 0.5}"
    arguments = ["--dataset-name", "random-mm", "--random-input-len", str(text), "--random-output-len", str(output)]
    arguments += ["--random-mm-base-items-per-request", str(pictures), "--random-mm-bucket-config", buckets]
    arguments += ["--random-mm-limit-mm-per-prompt", json.dumps({"image": pictures, "video": 0})]
    arguments += ["--random-mm-num-mm-items-range-ratio", "0", "--enable-multimodal-chat"]
    return await _bench(server, arguments, requests, pictures, [False] * requests, body, load)


async def _bench(
    server: Server,
    dataset: list[str],
    count: int,
    pictures: int,
    seen: Sequence[bool],
    body: dict[str, Any],
    load: Load,
) -> Run:
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", server.url]
    arguments += ["--model", server.model, "--tokenizer", server.tokenizer, "--num-prompts", str(count), *dataset]
    arguments += ["--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-detailed", "--temperature", "0"]
    arguments += ["--ignore-eos", "--seed", str(load.seed)]
    if load.concurrency is not None:
        arguments += ["--max-concurrency", str(load.concurrency)]
    if load.rate is not None:
        arguments += ["--request-rate", str(load.rate)]
    if body:
        arguments += ["--extra-body", json.dumps(body)]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    before = await asyncio.to_thread(server.metrics)
    watch = asyncio.create_task(_highest_kv_blocks(server.url))
    result = await main_async(parser.parse_args(arguments))
    watch.cancel()
    kv_blocks = await watch
    after = await asyncio.to_thread(server.metrics)
    rows = zip(result["ttfts"], result["itls"], result["input_lens"], result["output_lens"], seen, strict=True)
    requests = tuple(
        Request(ttft, tuple(itl), prompt, output, was_seen, error)
        for (ttft, itl, prompt, output, was_seen), error in zip(rows, result["errors"], strict=True)
    )
    return Run(requests, result["duration"], pictures * result["completed"], before, after, kv_blocks)


async def _highest_kv_blocks(url: str) -> float:
    """Watch the KV cache until cancelled."""
    highest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        async with httpx.AsyncClient(timeout=30) as client:
            while True:
                await asyncio.sleep(POLL_SECONDS)
                with contextlib.suppress(httpx.HTTPError):
                    highest = max(highest, kv_blocks(Samples.parse((await client.get(f"{url}/metrics")).text)))
    return highest


def kv_blocks(samples: Samples) -> float:
    """KV-cache blocks in use."""
    blocks = next((have for name, have, _ in samples.samples if name == "vllm:cache_config_info"), {})
    return samples.total("vllm:kv_cache_usage_perc") * float(blocks.get("num_gpu_blocks", 0))


def quiet() -> None:
    """Have vLLM's client side log no more than warnings."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
