"""The CPU image is built with buildah, serves a picture as its own user, and ends with 0 when it is told to stop."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from deploy_tools import ROOT, tool
from pictures import flat, message
from replicas import Program, wait_until
from serving import free_port

IMAGE = "localhost/dfmr-server:cpu"
STORAGE = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1200),
    pytest.mark.skipif("DFMR_IMAGE" not in os.environ, reason="takes minutes: NOT CHECKED but by make test-image"),
    pytest.mark.skipif(os.getuid() != 0, reason="buildah without root needs subordinate ids: NOT CHECKED"),
]


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    for name in ("buildah", "debootstrap", "crun"):
        tool(name)
    environment = {**os.environ, **STORAGE}
    subprocess.run([ROOT / "scripts" / "image.sh", IMAGE], env=environment, check=True)
    made = subprocess.run(["buildah", "from", IMAGE], env=environment, check=True, capture_output=True, text=True)
    name = made.stdout.strip()
    yield name
    subprocess.run(["buildah", "rm", name], env=environment, check=True, capture_output=True)


def in_container(process: psutil.Process) -> psutil.Process:
    """What the container's entry point became."""
    return next(p for p in process.children(recursive=True) if p.name() == "tini")


def test_it_serves_as_its_own_user_and_ends_when_it_is_told_to(container: str, tmp_path: Path) -> None:
    port = free_port()
    entry = ["tini", "--", "dfmr-entrypoint", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    program = Program(["buildah", "run", container, "--", *entry], tmp_path / "image.log", STORAGE)
    program.start()
    try:
        url = f"http://127.0.0.1:{port}"
        program.wait_for(f"{url}/ready")
        assert program.process is not None
        tini = in_container(psutil.Process(program.process.pid))
        assert tini.uids().effective == 1000
        body = {"model": "tiny-llava-dfmr", "messages": message(flat()), "max_tokens": 4}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        assert reply.json()["dfmr"]["saved_visual_tokens"] > 0
        tini.send_signal(signal.SIGTERM)
        wait_until(lambda: not program.running, "the end", 120)
        assert program.process.returncode == 0
    finally:
        if program.running:
            program.kill()


def test_it_holds_its_model_and_no_build_tools(container: str) -> None:
    environment = {**os.environ, **STORAGE}
    script = "test -f /opt/models/tiny-llava-dfmr/config.json && ! command -v uv && ! command -v pip && test -w /cache"
    subprocess.run(["buildah", "run", container, "--", "sh", "-c", script], env=environment, check=True)


def test_its_server_compiles_no_module_at_every_start(container: str) -> None:
    """Its user can't keep bytecode, so all that a start imports has to have come with it."""
    environment = {**os.environ, **STORAGE}
    line = ["python3", "-v", "-c", "import server.cli, vllm.entrypoints.openai.api_server"]
    run = subprocess.run(
        ["buildah", "run", container, "--", *line], env=environment, check=True, capture_output=True, text=True
    )
    loaded = re.findall(r"^# code object from '?(/opt/dfmr/[^']*)'?$", run.stderr, re.MULTILINE)
    assert any("/vllm/" in path for path in loaded)
    assert [path for path in loaded if not path.endswith(".pyc")] == []
