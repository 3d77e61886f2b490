"""One real server for the whole session."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pictures import scene
from serving import (
    BIN,
    CALIBRATED_TOKENS,
    MAX_IMAGES,
    MAX_MODEL_LEN,
    PROFILES,
    PROFILES_TEXT,
    REQUEST_LOG,
    Server,
    run_server,
)

from server.calibrate import main as calibrate
from server.standin import write_checkpoint


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`dfmr-serve` with a small random LLaVA in float32: a CLIP tower and a 24x24 map, as LLaVA-1.5 has."""
    folder = tmp_path_factory.mktemp("clip")
    write_checkpoint(folder / "model", dtype=torch.float32)
    (folder / PROFILES).write_text(PROFILES_TEXT)
    command = [str(BIN / "dfmr-serve"), str(folder / "model"), "--max-model-len", str(MAX_MODEL_LEN)]
    command += [
        "--limit-mm-per-prompt",
        f'{{"image": {MAX_IMAGES}}}',
        "--served-model-name",
        "small",
        "--dtype",
        "float32",
        "--enable-server-load-tracking",
        "--dfmr-allow-controls",
        "true",
        "--dfmr-baseline-share",
        "1",
        "--dfmr-request-log",
        str(folder / REQUEST_LOG),
        "--dfmr-profiles",
        str(folder / PROFILES),
    ]
    yield from run_server(command, folder / "model", folder / "server.log")


@pytest.fixture(scope="module")
def own_profiles(server: Server) -> Iterator[None]:
    """For tests that change the server's profiles file: in the end it is as it was."""
    yield
    assert server.reload_profiles(PROFILES_TEXT).status_code == 200


@pytest.fixture(scope="session")
def gauges(server: Server) -> Path:
    """A profile that was calibrated on this server's own scores of 24 scenes, beside its profiles file."""
    folder = server.model.parent / "pictures"
    folder.mkdir()
    for seed in range(24):
        scene(seed).save(folder / f"{seed}.png")
    path = server.model.parent / "gauges.json"
    calibrate([str(folder), "--endpoint", server.url, "--target-tokens", str(CALIBRATED_TOKENS), "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def siglip_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Plain ``vllm serve`` with our plugin: two API processes, a SigLIP tower (27x27 map), a tiny encoder queue."""
    folder = tmp_path_factory.mktemp("siglip")
    write_checkpoint(folder / "model", tower="siglip", image_size=378, dtype=torch.float32)
    (folder / PROFILES).write_text(PROFILES_TEXT)
    command = [str(BIN / "vllm"), "serve", str(folder / "model"), "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--api-server-count", "2", "--served-model-name", "siglip", "--dtype", "float32"]
    settings = {"max_batch": 1, "max_queue": 2, "profiles": str(folder / PROFILES)}
    command += ["--additional-config", json.dumps({"dfmr": settings})]
    yield from run_server(command, folder / "model", folder / "server.log", {"VLLM_PLUGINS": "dfmr"})
