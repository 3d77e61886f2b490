"""A small real HTTP server that speaks enough of the OpenAI API, and of ours, to be evaluated.

Pictures are plain colours that say what a model would find in them: red / 100 is the score at every factor, green is
the right answer, and blue the largest factor at which it can still be read.
"""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

from listener import Listener
from PIL import Image

TOKENS = {1: 576, 2: 144, 3: 64, 4: 36}
TAUS = {2: 0.5, 3: 0.4, 4: 0.2}


def picture(score: int, answer: int, largest: int, size: tuple[int, int] = (48, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (score, answer, largest)).save(buffer, "PNG")
    return buffer.getvalue()


def decode(url: str) -> tuple[int, int, int]:
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    red, green, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return red, green, blue


class FakeEndpoint:
    """Serves on a free port of the loopback interface.

    Attributes:
        requests: bodies of chat requests, in order.
        methods: dropping methods that it offers.
        dfmr: whether it knows the ``dfmr`` object at all.
        failing: questions with this text get a 500.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.methods: tuple[str, ...] = ()
        self.dfmr = True
        self.failing: str | None = None
        self._server = Listener(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def factor(self, score: float, options: dict[str, Any]) -> int:
        if options.get("enabled") is False:
            return 1
        tau = options.get("tau", TAUS)
        allowed = options.get("factors", list(TOKENS))
        passing = (s for s in allowed if s > 1 and score < (tau[str(s)] if str(s) in tau else tau[s]))
        return allowed[0] if len(allowed) == 1 else max(passing, default=1)

    def explain(self, body: dict[str, Any]) -> dict[str, Any]:
        score = decode(body["image_url"]["url"])[0] / 100
        s = self.factor(score, body.get("dfmr") or {})
        return {
            "factor": s,
            "original_visual_tokens": 576,
            "kept_visual_tokens": TOKENS[s],
            "policy": {"factors": list(TOKENS), "tau": {str(k): v for k, v in TAUS.items()}},
            "candidates": [{"factor": k, "visual_tokens": v, "score": score} for k, v in TOKENS.items()],
            "overlay": body["image_url"]["url"] if body.get("overlay") else None,
        }

    def answer(self, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
        *images, _ = body["messages"][-1]["content"]
        options = body.get("dfmr") or {}
        seen = [decode(part["image_url"]["url"]) for part in images]
        factors = [self.factor(red / 100, options) if self.dfmr else 1 for red, _, _ in seen]
        readable = all(s <= blue for s, (_, _, blue) in zip(factors, seen, strict=True))
        report = {
            "original_visual_tokens": 576 * len(seen),
            "kept_visual_tokens": sum(TOKENS[s] for s in factors),
            "images": [{"factor": s, "score": seen[i][0] / 100, "cached": False} for i, s in enumerate(factors)],
        }
        return (str(seen[0][1]) if readable else "cannot tell"), report if self.dfmr else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

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

            def json(self, body: Any, status: int = 200) -> None:
                self.reply(status, json.dumps(body).encode())

            def do_GET(self) -> None:
                self.json({"object": "list", "data": [{"id": "fake", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/dfmr/explain":
                    self.json(fake.explain(body)) if fake.dfmr else self.json({"detail": "Not Found"}, 404)
                    return
                fake.requests.append(body)
                method = (body.get("dfmr") or {}).get("method")
                if method and method not in fake.methods:
                    self.json({"error": {"message": "dfmr.method: extra inputs are not permitted"}}, 400)
                elif fake.failing and fake.failing in body["messages"][-1]["content"][-1]["text"]:
                    self.json({"error": {"message": "out of order"}}, 500)
                else:
                    self.reply(200, fake.stream(body), "text/event-stream")

        return Handler

    def stream(self, body: dict[str, Any]) -> bytes:
        text, report = self.answer(body)
        usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
        if report is not None:
            usage["prompt_tokens"] += report["kept_visual_tokens"]
        head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
        chunks: list[dict[str, Any]] = [
            {**head, "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in text
        ]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({**head, "choices": [], "usage": usage, **({"dfmr": report} if report else {})})
        return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"
