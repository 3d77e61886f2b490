"""Where a checkpoint's own profile is looked for: in its folder, and at the hub, here a server on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from listener import Listener

from server.profiles.checkpoint import PROFILE_FILE, checkpoint_profile

CONTENT = json.dumps({"policy": {"tau": 0.7}, "note": "trained with pooled maps"}).encode()
SCRIPT = """
import sys
from server.profiles.checkpoint import checkpoint_profile
for model, revision in (("org/trained", None), ("org/trained", "v2"), ("org/plain", None), ("no/such", None)):
    profile = checkpoint_profile(model, revision)
    print(None if profile is None else profile.policy)
"""


class Hub(BaseHTTPRequestHandler):
    """One model with a profile on its main branch, and one without any."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        found = self.path == f"/org/trained/resolve/main/{PROFILE_FILE}"
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound" if self.path.startswith("/no/") else "EntryNotFound")
        self.send_header("X-Repo-Commit", ("0" if "/main/" in self.path else "1") * 40)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(CONTENT)) if found else "0")
        self.end_headers()
        if body and found:
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = Listener(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(home: Path, **environment: str) -> tuple[list[str], str]:
    """What a process of its own reads, since huggingface_hub reads its environment when it is imported."""
    names = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **names}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_one_at_the_hub_is_fetched_and_kept_for_when_the_hub_cannot_be_asked(hub: str, tmp_path: Path) -> None:
    found, _ = read(tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert found == ["{'tau': 0.7}", "None", "None", "None"]
    found, said = read(tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert found == ["{'tau': 0.7}", "None", "None", "None"]
    assert f"it could not be found out whether no/such has a {PROFILE_FILE}" in said
    assert "org/plain" not in said, "of which it is known that it has none"


def test_a_folder_is_never_asked_for_at_the_hub(tmp_path: Path) -> None:
    assert checkpoint_profile(str(tmp_path)) is None
    (tmp_path / PROFILE_FILE).write_bytes(CONTENT)
    profile = checkpoint_profile(str(tmp_path))
    assert profile is not None
    assert profile.policy == {"tau": 0.7}
