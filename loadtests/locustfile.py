"""Locust users that behave like an application: several pictures, follow-up questions, streaming, cancels, and worse.

``python -m loadtests`` starts them; by hand, against any server:
``locust -f loadtests/locustfile.py --host http://localhost:8000 --errand errand.json Application``.
"""

import base64
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from locust import HttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.clients import ResponseContextManager
from locust.env import Environment

from loadtests.errand import HASTY_FACTOR, Answer, Errand, Ledger

_MOST_SURPRISES = 20
_QUESTIONS = ("What is on these pictures?", "Which of them matters?", "Read the largest number.", "Is anything broken?")


class Shared:
    """What all users of this process have in common."""

    errand: ClassVar[Errand]
    pictures: ClassVar[Iterator[str]]
    turn: ClassVar[Iterator[int]] = itertools.count()
    ledger: ClassVar[Ledger] = Ledger()

    @classmethod
    def count(cls, outcome: str) -> None:
        cls.ledger.outcomes[outcome] = cls.ledger.outcomes.get(outcome, 0) + 1

    @classmethod
    def surprise(cls, what: str) -> None:
        cls.count("surprise")
        if len(cls.ledger.surprises) < _MOST_SURPRISES:
            cls.ledger.surprises.append(what[:500])


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--errand", help="JSON file with what to do; see loadtests.application.Errand")


@events.init.add_listener
def _start(environment: Environment, **_: Any) -> None:
    assert environment.parsed_options is not None
    Shared.errand = Errand.model_validate_json(Path(environment.parsed_options.errand).read_text())
    urls = Shared.errand.pictures.read_text().splitlines()
    Shared.pictures = itertools.cycle(urls) if Shared.errand.again else _new_files(urls)
    random.seed(Shared.errand.seed)
    total = sum(Shared.errand.users.values())
    for chosen in environment.user_classes:
        chosen.fixed_count = Shared.errand.users[chosen.__name__]
        if Shared.errand.rate is not None:
            chosen.wait_time = constant_throughput(Shared.errand.rate / total)


def _new_files(urls: Sequence[str]) -> Iterator[str]:
    """The same pixels in another file each time: decoders take no notice of what follows a picture, caches do."""
    files = [(start, base64.b64decode(data)) for start, _, data in (url.partition(",") for url in urls)]
    for serial, (start, data) in enumerate(itertools.cycle(files)):
        yield f"{start},{base64.b64encode(data + b'%012d' % serial).decode()}"


@events.quitting.add_listener
def _write(**_: Any) -> None:
    Shared.errand.ledger.write_text(Shared.ledger.model_dump_json())


class Chat(HttpUser):
    """Asks and reads streams."""

    abstract = True

    def on_start(self) -> None:
        self.client.trust_env = False

    def content(self, pictures: int) -> list[dict[str, Any]]:
        """Pictures and a question that nobody has asked before."""
        turn = next(Shared.turn)
        row = Shared.errand.details[turn % len(Shared.errand.details)]
        urls = ({"url": next(Shared.pictures), "detail": row[i % len(row)]} for i in range(pictures))
        question = f"{random.choice(_QUESTIONS)} ({turn})"
        return [*({"type": "image_url", "image_url": url} for url in urls), {"type": "text", "text": question}]

    def body(self, messages: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        """A streamed request."""
        asked: dict[str, Any] = {"model": Shared.errand.model, "messages": messages, "max_completion_tokens": tokens}
        asked |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
        return asked | ({"dfmr": Shared.errand.dfmr} if Shared.errand.dfmr else {})

    def ask(self, messages: list[dict[str, Any]], tokens: int, *, follow_up: bool = False, pause: float = 0.0) -> str:
        """Read an answer to its end, pausing at each chunk; "" if there was none."""
        start = time.perf_counter()
        times: list[float] = []
        text, finished = "", False
        usage: dict[str, int] = {}
        with self._open(messages, tokens, "follow-up" if follow_up else "question") as response:
            if not self._began(response):
                return ""
            for line in response.iter_lines():
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    finished = finished or line == b"data: [DONE]"
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                if "error" in chunk:
                    break
                if chunk.get("choices"):
                    times.append(time.perf_counter())
                    text += chunk["choices"][0]["delta"].get("content") or ""
                if pause:
                    time.sleep(pause)
            if not finished or not times:
                response.failure("the stream broke off")
                Shared.surprise(f"a stream broke off after {len(times)} chunks")
                return ""
            response.success()
        Shared.count("slow" if pause else "answered")
        Shared.ledger.pictures += sum(part["type"] == "image_url" for m in messages for part in _parts(m))
        if not pause:
            answer = Answer(
                ttft=times[0] - start,
                itl=[after - before for before, after in itertools.pairwise(times)],
                output_tokens=usage.get("completion_tokens", len(times)),
                prompt_tokens=usage.get("prompt_tokens", 0),
                follow_up=follow_up,
            )
            Shared.ledger.answers.append(answer)
        return text

    def _open(self, messages: list[dict[str, Any]], tokens: int, name: str, **options: Any) -> ResponseContextManager:
        body = {**self.body(messages, tokens), **options.pop("changed", {})}
        return self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True, name=name, **options
        )

    def _began(self, response: ResponseContextManager) -> bool:
        """Note the tokens that a response's headers tell; False if there is nothing to read."""
        if response.status_code == 503:
            Shared.count("turned away")
            response.success()
            return False
        if response.status_code != 200:
            response.failure(f"status {response.status_code}")
            Shared.surprise(
                f"status {response.status_code}: {response.text if response.status_code else response.error}"
            )
            return False
        Shared.ledger.original += int(response.headers.get("x-dfmr-visual-tokens-original", 0))
        Shared.ledger.kept += int(response.headers.get("x-dfmr-visual-tokens-kept", 0))
        return True


class Application(Chat):
    """Uploads a few pictures, asks, and asks again in the same conversation."""

    @task
    def conversation(self) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.content(random.choice((1, 1, 2, 4)))}]
        for turn in range(1 + random.randrange(3)):
            answer = self.ask(messages, 12, follow_up=turn > 0)
            if not answer:
                return
            follow_up = f"{random.choice(_QUESTIONS)} ({next(Shared.turn)})"
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": follow_up}]


class Leaver(Chat):
    """Closes the connection in the middle of an answer."""

    @task
    def leave(self) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.content(random.choice((1, 2)))}]
        with self._open(messages, 64, "left") as response:
            if self._began(response):
                for _ in itertools.islice(response.iter_lines(), random.randrange(4)):
                    pass
                response.close()
                response.success()
                Shared.count("left")


class Hasty(Chat):
    """Is gone before there is anything to read."""

    @task
    def run_away(self) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.content(2)}]
        for part in messages[0]["content"][:-1]:
            part["image_url"]["detail"] = "auto"
        changed = {"dfmr": {"factors": [HASTY_FACTOR]}} if Shared.errand.dfmr else {}
        timeout = (5, random.choice((0.001, 0.01, 0.03, 0.1)))
        with self._open(messages, 4, "hasty", timeout=timeout, changed=changed) as response:
            if response.status_code:
                response.close()
            response.success()
        Shared.count("hasty")


class Broken(Chat):
    """Sends what is no picture, or asks for what is not offered, and expects to be told so."""

    @task
    def send_rubbish(self) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.content(2)}]
        url = messages[0]["content"][random.randrange(2)]["image_url"]
        start, _, data = url["url"].partition(",")
        url["url"] = random.choice(
            (f"{start},{data[: len(data) // 3]}", f"{start},AAAA", "data:,", f"{start},{data[::-1]}")
        )
        with self._open(messages, 4, "broken") as response:
            if response.status_code == 400:
                Shared.count("refused")
                response.success()
            elif self._began(response):
                Shared.surprise("a broken picture was answered")
                response.failure("answered")


class SlowReader(Chat):
    """Reads so slowly that the server is finished long before."""

    @task
    def dawdle(self) -> None:
        self.ask([{"role": "user", "content": self.content(1)}], 48, pause=0.2)


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else []
