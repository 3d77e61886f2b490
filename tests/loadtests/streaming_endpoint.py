"""A small real HTTP server that streams like ours and counts like ours, taking a time for each prompt token.

The engine itself is tested elsewhere; this one stands for it where the load tests' own logic is at stake.
"""

import base64
import io
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any

from listener import Listener
from PIL import Image

SIDE = 24


class StreamingEndpoint:
    """Serves on a free port of the loopback interface.

    Args:
        dfmr: whether it pools; a one-phase server keeps every token and ignores the ``dfmr`` object.
        seconds_per_token: of the prompt.
    """

    def __init__(self, dfmr: bool, seconds_per_token: float = 0.0) -> None:
        self.dfmr = dfmr
        self.seconds_per_token = seconds_per_token
        self.counts: Counter[str] = Counter()
        self.pictures: set[str] = set()
        self.running = 0
        self._lock = threading.Lock()
        self._server = Listener(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def metrics(self) -> str:
        lines = [f"{name} {value}" for name, value in self.counts.items()]
        lines.append(f"distinct_pictures {len(self.pictures)}")
        return "\n".join([*lines, f'vllm:num_requests_running{{model_name="m"}} {self.running}']) + "\n"

    def kept(self, body: dict[str, Any]) -> tuple[int, int]:
        """Visual tokens of a request before and after.

        Raises:
            OSError, ValueError: a picture cannot be read.
        """
        parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
        pictures = [p["image_url"] for p in parts if p["type"] == "image_url"]
        options = body.get("dfmr", {})
        factors = options.get("factors", [1]) if self.dfmr and options.get("enabled") is not False else [1]
        kept = 0
        for picture in pictures:
            Image.open(io.BytesIO(base64.b64decode(picture["url"].partition(",")[2], validate=True))).load()
            detail = picture.get("detail", "auto")
            factor = 1 if detail == "high" else max(factors) if detail == "low" else min(factors)
            kept += (SIDE // factor) ** 2
            with self._lock:
                self.pictures.add(picture["url"])
                self.counts[f'dfmr_images_total{{factor="{factor}"}}'] += self.dfmr
        return SIDE**2 * len(pictures), kept

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments: Any) -> None:
                pass

            def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if self.path.endswith("/metrics"):
                    self.reply(200, endpoint.metrics().encode(), "text/plain")
                else:
                    self.reply(200, b'{"data": [{"id": "fake"}]}')

            def do_POST(self) -> None:
                if self.path != "/v1/chat/completions":
                    self.close_connection = True
                    self.reply(404, b"{}")
                    return
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    original, kept = endpoint.kept(body)
                except (OSError, ValueError) as error:
                    self.reply(400, json.dumps({"error": {"message": str(error)}}).encode())
                    return
                endpoint.count(original, kept)
                try:
                    self.stream(body, original, kept)
                except OSError:
                    self.close_connection = True
                finally:
                    endpoint.done()

            def stream(self, body: dict[str, Any], original: int, kept: int) -> None:
                text = sum(
                    len(str(p.get("text", ""))) for m in body["messages"] for p in m["content"] if isinstance(p, dict)
                )
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                if endpoint.dfmr:
                    self.send_header("x-dfmr-visual-tokens-original", str(original))
                    self.send_header("x-dfmr-visual-tokens-kept", str(kept))
                self.end_headers()
                time.sleep(endpoint.seconds_per_token * (text + kept))
                tokens = body["max_completion_tokens"]
                for index in range(tokens):
                    self.send({"choices": [{"index": 0, "delta": {"content": f" {index}"}}]})
                usage = {"prompt_tokens": text + kept, "completion_tokens": tokens}
                self.send({"choices": [], "usage": usage})
                self.chunk(b"data: [DONE]\n\n")
                self.chunk(b"")

            def send(self, event: dict[str, Any]) -> None:
                self.chunk(f"data: {json.dumps(event)}\n\n".encode())

            def chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        return Handler

    def count(self, original: int, kept: int) -> None:
        with self._lock:
            self.running += 1
            if self.dfmr:
                self.counts['dfmr_visual_tokens_total{stage="original"}'] += original
                self.counts['dfmr_visual_tokens_total{stage="kept"}'] += kept

    def done(self) -> None:
        with self._lock:
            self.running -= 1
