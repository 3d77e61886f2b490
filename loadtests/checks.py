"""What a run asks of a server beside latencies: how many pictures fit, and whether memory stays flat."""

import base64
import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from PIL import Image

from loadtests.scenarios import Policy
from loadtests.servers import Server

MOST_PICTURES = 128
_SERIAL = itertools.count()
IDLE_SECONDS = 60


def pictures_that_fit(server: Server, policy: Policy) -> int:
    """The most pictures that one request may hold before the server says that its context is full.

    Raises:
        RuntimeError: the server answers neither yes nor no.
    """
    fits, too_many = 0, MOST_PICTURES
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _accepted(server, policy, middle):
            fits = middle
        else:
            too_many = middle
    return fits


def _accepted(server: Server, policy: Policy, pictures: int) -> bool:
    parts = [{"type": "image_url", "image_url": {"url": _unseen()}} for _ in range(pictures)]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is on these pictures?"}]}]
    body = {
        "model": server.model,
        "messages": messages,
        "max_tokens": 1,
        **policy.body,
    }
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
    if reply.status_code not in (httpx.codes.OK, httpx.codes.BAD_REQUEST):
        raise RuntimeError(f"{pictures} pictures: status {reply.status_code}: {reply.text[:300]}")
    return reply.status_code == httpx.codes.OK


def _unseen() -> str:
    """A picture that was never sent before: vLLM answers 500 to pictures of a request that it refused, sent again."""
    serial = next(_SERIAL)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (serial % 256, serial // 256 % 256, 160)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def wait_until_idle(server: Server) -> bool:
    """Whether the server came to hold no request and no waiting picture."""
    deadline = time.monotonic() + IDLE_SECONDS
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "dfmr_encode_queue_pictures")
    while time.monotonic() < deadline:
        samples = server.metrics()
        if not any(samples.total(name) for name in names):
            return True
        time.sleep(0.5)
    return False


def memory_growth(server: Server, load: Callable[[], object], cache_bytes: int) -> dict[str, float]:
    """What a load leaves behind; {} for a server that was not started here.

    Args:
        load: answers requests until it returns.
        cache_bytes: the bound that the server was started with.

    Returns:
        resident bytes before and after and their growth as a share; the feature cache's bytes as a share of its bound.
    """
    wait_until_idle(server)
    before = server.footprint()
    load()
    wait_until_idle(server)
    after = server.footprint()
    if before is None or after is None:
        return {}
    return {
        "rss_before": before.rss,
        "rss_after": after.rss,
        "rss_growth": after.rss / before.rss - 1,
        "descriptors_before": before.descriptors,
        "descriptors_after": after.descriptors,
        "cache_share_of_bound": server.metrics().total("dfmr_cache_bytes") / cache_bytes,
    }


def log_tail(path: Path | None, length: int = 2000) -> str:
    """The end of a server's log."""
    return path.read_text(errors="replace")[-length:] if path and path.exists() else ""
