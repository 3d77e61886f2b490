"""One real server for the whole session."""

import json
from collections.abc import Iterator

import pytest
import torch
from serving import BIN, MAX_IMAGES, MAX_MODEL_LEN, PROFILES, PROFILES_TEXT, REQUEST_LOG, Server, run_server

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
