"""The main job, from start to end: serve a model, ask about several pictures at once, and see what compression saved.

Starts ``dfmr-serve`` on a free port, talks to it with the official ``openai`` client, prints the answers and a table,
compares the table with ``/metrics``, and stops the server.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from openai import OpenAI

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS = sorted((HERE / "pictures").glob("*.jpg"))
SCENES = HERE / "scenes"
QUESTIONS = json.loads((SCENES / "questions.json").read_text())
"""Held-out pictures of the kinds that the embedded model was trained for, so that its answers can be checked."""
START_SECONDS = 600


class Row(NamedTuple):
    """One picture's line of the table."""

    name: str
    score: float
    factor: int
    before: int
    after: int
    first_token: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint to serve; default: the embedded model")
    arguments = parser.parse_args()
    with running_server(arguments.model) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        model = client.models.list().data[0].id
        reports = ask_scenes(client, model)
        rows = []
        for path in PHOTOGRAPHS:
            _, one, seconds = ask(client, model, [path], "What pattern is the background?")
            (image,) = one["images"]
            before, after = one["original_visual_tokens"], image["kept_tokens"]
            rows.append(Row(path.name, image["score"], image["factor"], before, after, seconds))
            reports.append(one)
        print_table(rows)
        print(f"\nAll {len(PHOTOGRAPHS)} photographs in one request, their features now coming from the cache:")
        _, report, seconds = ask(client, model, PHOTOGRAPHS, "Which picture has more shapes?")
        reports.append(report)
        print(
            f"  {report['original_visual_tokens']} visual tokens became {report['kept_visual_tokens']}; "
            f"first token after {seconds * 1000:.0f} ms"
        )
        check_metrics(url, reports)
    print("\nThe server is stopped; nothing is left running.")


def ask_scenes(client: OpenAI, model: str) -> list[dict[str, Any]]:
    """Ask the questions whose answers are known; one is about two pictures at once.

    Returns:
        the ``dfmr`` reports.
    """
    print("\nQuestions whose answers can be checked:\n")
    print("| question | pictures | answer | right answer | visual tokens before | after |")
    print("|---|---|---|---|---|---|")
    reports, right = [], 0
    for question in QUESTIONS:
        paths = [SCENES / name for name in question["pictures"]]
        answer, report, _ = ask(client, model, paths, question["question"])
        right += answer == question["answer"]
        print(
            f"| {question['question']} | {', '.join(path.name for path in paths)} | {answer} | {question['answer']} "
            f"| {report['original_visual_tokens']} | {report['kept_visual_tokens']} |"
        )
        reports.append(report)
    print(f"\n{right} of {len(QUESTIONS)} answers are right.")
    return reports


def ask(client: OpenAI, model: str, paths: list[Path], question: str) -> tuple[str, dict[str, Any], float]:
    """One streamed chat request.

    Returns:
        the answer, the ``dfmr`` report of the last chunk, and seconds to the first token.
    """
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in paths]
    start = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": question}]}],  # type: ignore[list-item, misc]
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    text, first, report = "", 0.0, {}
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.role is None:
            first = first or time.perf_counter() - start
            text += chunk.choices[0].delta.content or ""
        report = (chunk.model_extra or {}).get("dfmr", report)
    return text.strip(), report, first


def data_url(path: Path) -> str:
    return "data:image/*;base64," + base64.b64encode(path.read_bytes()).decode()


def print_table(rows: list[Row]) -> None:
    print("\nEach photograph in a request of its own:\n")
    print("| picture | score | pooling factor | visual tokens before | after | time to first token |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.score:.3f} | {row.factor} | {row.before} | {row.after} "
            f"| {row.first_token * 1000:.0f} ms |"
        )
    before, after = sum(row.before for row in rows), sum(row.after for row in rows)
    print(f"| **all** | | | {before} | {after} ({after / before:.0%}) | |")


def check_metrics(url: str, reports: list[dict[str, Any]]) -> None:
    """Compare ``/metrics`` with what the responses said.

    Raises:
        SystemExit: they differ.
    """
    counted: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        if line.startswith("dfmr_visual_tokens_total"):
            stage = line.split('stage="')[1].split('"')[0]
            counted[stage] = counted.get(stage, 0.0) + float(line.rsplit(" ", 1)[1])
    told = {stage: sum(report[f"{stage}_visual_tokens"] for report in reports) for stage in ("original", "kept")}
    print(f"\n/metrics counted {counted['original']:.0f} visual tokens, {counted['kept']:.0f} of them kept:", end=" ")
    if counted != told:
        raise SystemExit(f"that is not what the responses said ({told})")
    print("the same as the responses.")


@contextmanager
def running_server(model: str | None) -> Iterator[str]:
    """`dfmr-serve` on a free port of this machine, ended on leaving."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(Path(sys.executable).parent / "dfmr-serve"), *([model] if model else [])]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "4096"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", **os.environ}
    log = tempfile.NamedTemporaryFile("w+", prefix="dfmr-demo-", suffix=".log", delete=False)  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process, Path(log.name))
        yield url
    finally:
        log.close()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for ``/health``, with a sign of life.

    Raises:
        SystemExit: the server ended or took too long; with the end of its log.
    """
    start = time.monotonic()
    print("starting dfmr-serve (about a minute on a CPU) ", end="", flush=True)
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                print(f" ready after {time.monotonic() - start:.0f} s")
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() - start > START_SECONDS:
            raise SystemExit(f"\nthe server did not start; the end of its log:\n{log.read_text()[-4000:]}")
        print(".", end="", flush=True)
        time.sleep(2)


if __name__ == "__main__":
    main()
