"""Starting and asking real servers: the engine, the API process and the plugin, as a user starts them."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

START_SECONDS = 600
MAX_MODEL_LEN = 8192
MAX_IMAGES = 13
CALIBRATED_TOKENS = 200
"""Mean visual tokens that the `gauges` profile is calibrated to."""
BIN = Path(sys.executable).parent
KEY = "sk-archive"
PROFILES = "profiles.yaml"
REQUEST_LOG = "requests.jsonl"
"""The server's request log, in the folder that its model is in."""
PROFILES_TEXT = f"""
profiles:
  inspection: {{policy: {{factors: [1, 2], tau: 0}}}}
  archive: {{policy: {{factors: [4, 6], max_tokens_per_image: 36}}}}
keys: {{{hashlib.sha256(KEY.encode()).hexdigest()}: archive}}
"""
"""The profiles that the servers of these tests start with."""


@dataclass
class Server:
    """A running server."""

    url: str
    model: Path
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def reload_profiles(self, text: str | None = None) -> httpx.Response:
        """Have the profiles file read again, with another content if there is one."""
        if text is not None:
            (self.model.parent / PROFILES).write_text(text)
        return httpx.post(f"{self.url}/v1/dfmr/profiles/reload", timeout=60)

    def metrics(self) -> dict[str, float]:
        """Samples of ``/metrics`` by name and labels, as they are printed there."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of one name whose labels include the given ones."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for key, value in self.metrics().items()
            if key.split("{")[0] == name and all(label in key for label in wanted)
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_server(command: list[str], model: Path, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server, wait until it is healthy, and end it when the test session is done with it."""
    port = free_port()
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    full = [*command, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            full, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {' '.join(full)}\n{log.read_text()[-6000:]}", pytrace=False)
            time.sleep(0.5)
        yield Server(url, model, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
