"""A record of what was answered, for a cost report without Prometheus: one JSON line per request, no text, no pictures.

Lines are written by a thread of its own behind a bounded queue: a slow disk loses lines, which are counted, and never
time. The file is rotated, so it is bounded too.
"""

import json
import queue
import threading
import time
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from server.metrics import REQUEST_LOG_DROPPED
from server.savings import Report

MAX_FILE_BYTES = 64 << 20
KEPT_FILES = 3
"""Older files, ``FILE.1`` the youngest of them."""

_MAX_WAITING = 10_000
_END = ""
"""Ends the thread; no line is empty."""


class RequestLog:
    """Appends to a file of one API process.

    Args:
        path: the file; with several API processes, those after the first put their number before its suffix.
        rank: number of the API process, from 0.
        model_name: label of the metrics, and in every line.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rank: int, model_name: str) -> None:
        self.path = path.with_name(f"{path.stem}-{rank}{path.suffix}") if rank else path
        self._model = model_name
        self._dropped = REQUEST_LOG_DROPPED.labels(model_name)
        self._file = RotatingFileHandler(self.path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
        self._lines: queue.Queue[str] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="dfmr-request-log", daemon=True)
        self._thread.start()

    def answered(self, report: Report, kv_bytes_per_token: float, seconds: float) -> None:
        """A request whose answer has been sent, ``seconds`` after it came."""
        self._put(
            kind="request",
            profile=report.profile,
            images=len(report.images),
            original_visual_tokens=report.original_visual_tokens,
            kept_visual_tokens=report.kept_visual_tokens,
            kv_bytes_saved=report.saved_visual_tokens * kv_bytes_per_token,
            seconds=round(seconds, 4),
        )

    def pair(self, profile: str, ttft: float, baseline_ttft: float, overlap: float | None, exact: bool | None) -> None:
        """A request that was run again, with compression and without; no agreement above temperature 0."""
        self._put(kind="pair", profile=profile, ttft=ttft, baseline_ttft=baseline_ttft, overlap=overlap, exact=exact)

    def _put(self, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "model": self._model, **fields})
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped.inc()

    def _write(self) -> None:
        while (line := self._lines.get()) != _END:
            # RotatingFileHandler rotates, flushes and, on a full disk, complains to stderr instead of raising.
            self._file.emit(LogRecord("", 0, "", 0, line, None, None))
        self._file.close()

    def close(self) -> None:
        """Write what waits, for a second at most, and end."""
        try:
            self._lines.put(_END, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)
