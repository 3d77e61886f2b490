"""Latency saved and answers kept, measured: a sampled request is run again, with and without compression.

Both runs of a pair are made in the background after the user's answer, one after the other, on an engine that has
nothing else to do, and share no cached state with each other or with any request. So what differs between them is the
number of visual tokens. The time that is compared starts when the engine schedules the prompt and ends with its first
token; fetching, preprocessing and encoding the pictures are the same for both and not in it.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.inputs import MultiModalInput
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from server.metrics import BASELINE_AGREEMENT, BASELINE_ANSWERS, BASELINE_RUNS, BASELINE_TTFT, TTFT
from server.request import Rendered, RequestState
from server.request_log import RequestLog
from server.vllm_plugin.renderer import DfmrRenderer

logger = init_logger(f"vllm.{__name__}")

MAX_ANSWER_TOKENS = 256
"""How much of the answers is compared; it bounds what a pair costs."""

MAX_WAITING = 4
"""Drawn requests that may wait for an idle engine; they hold on to their pictures."""

OUTCOMES = ("measured", "busy", "backlog", "gave_way", "too_long", "failed")
_WAIT_SECONDS = 60.0
_RUN_SECONDS = 120.0
_POLL_SECONDS = 0.02


class Run(NamedTuple):
    """One run of a request: seconds from scheduling to the first token, and the answer's token ids."""

    ttft: float
    answer: list[int]


class Pair(NamedTuple):
    """The same request with compression and without.

    Attributes:
        profile: the profile that the request was answered with.
        greedy: whether the answers can be compared: at temperature 0 nothing but the pictures makes them differ.
    """

    profile: str
    compressed: Run
    whole: Run
    greedy: bool

    @property
    def exact(self) -> bool:
        return self.compressed.answer == self.whole.answer

    @property
    def overlap(self) -> float:
        return token_overlap(self.compressed.answer, self.whole.answer)


class _Job(NamedTuple):
    request: ChatCompletionRequest
    rendered: Rendered
    profile: str
    deadline: float


class Baseline:
    """Draws requests, and runs the pairs while the engine is idle; a user's request that comes meanwhile ends the run.

    Args:
        engine: runs the pairs.
        renderer: makes their prompts.
        chat: vLLM's chat handler, for the defaults of sampling parameters.
        share: of compressed chat requests, 0 to 1.
        max_load: most users' requests in the engine of this API process beside which a pair runs.
        log: gets every pair too.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        renderer: DfmrRenderer,
        chat: OpenAIServingChat,
        *,
        share: float,
        max_load: int,
        log: RequestLog | None = None,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._chat = chat
        self._share = share
        self._max_load = max_load
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(MAX_WAITING)
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._own = 0
        self._compressed_first = True
        self._model = renderer.model_config.served_model_name
        for outcome in OUTCOMES:
            BASELINE_RUNS.labels(self._model, outcome)

    def draws(self, request: ChatCompletionRequest) -> bool:
        """Whether this request is one of the sample, if its pictures turn out to be compressed."""
        return not request.use_beam_search and random.random() < self._share

    async def offer(self, request: ChatCompletionRequest, state: RequestState) -> None:
        """Take a drawn request whose answer has been sent; if its pictures kept every token, nothing is to compare."""
        if self._closed or state.rendered is None or state.report is None or not state.report.saved_visual_tokens:
            return
        job = _Job(request, state.rendered, state.report.profile, time.monotonic() + _WAIT_SECONDS)
        try:
            self._jobs.put_nowait(job)
        except asyncio.QueueFull:
            self._count("backlog")
            return
        if self._worker is None or self._worker.done():
            self._worker = self._loop.create_task(self._work())

    def close(self) -> None:
        """End what runs and take nothing more; may be called from any thread."""
        self._closed = True
        with suppress(RuntimeError):  # the event loop is closed already
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._worker is not None:
            self._worker.cancel()

    async def _work(self) -> None:
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            try:
                outcome = await self._measure(job)
            except Exception:
                logger.warning("dfmr: a baseline run failed; the user's answer is not concerned", exc_info=True)
                outcome = "failed"
            self._count(outcome)

    async def _measure(self, job: _Job) -> str:
        while self._users() > self._max_load:
            if time.monotonic() > job.deadline:
                return "busy"
            await asyncio.sleep(_POLL_SECONDS)
        running = self._loop.create_task(self._pair(job))
        end = time.monotonic() + _RUN_SECONDS
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=_POLL_SECONDS)
                if not running.done() and (self._users() > self._max_load or time.monotonic() > end):
                    return "gave_way"
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        pair = running.result()
        if pair is None:
            return "too_long"
        self._record(pair)
        return "measured"

    async def _pair(self, job: _Job) -> Pair | None:
        """Both runs; None if the uncompressed prompt leaves no room for an answer."""
        encoder = self._renderer.encoder
        assert encoder is not None
        prompt, pictures, encoded = job.rendered
        # One after the other: a user's picture that comes meanwhile waits for one encode, not for a batch.
        whole = [await encoder.encode_whole(picture) for picture in pictures]
        inputs = [self._renderer.input_apart(prompt, made, uuid4().hex) for made in (encoded, whole)]
        length = len(inputs[1]["prompt_token_ids"])
        if length >= self._renderer.model_config.max_model_len:
            return None
        params = self._sampling(job.request, length)
        # Which of the two is first alternates, so that whatever the first one warms up cancels out.
        order = (0, 1) if self._compressed_first else (1, 0)
        self._compressed_first = not self._compressed_first
        runs = {index: await self._run(inputs[index], params) for index in order}
        return Pair(job.profile, runs[0], runs[1], params.temperature == 0)

    def _sampling(self, request: ChatCompletionRequest, length: int) -> SamplingParams:
        """The request's own, for one answer of bounded length, the same for both runs."""
        wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        max_tokens = get_max_tokens(
            self._renderer.model_config.max_model_len,
            wanted,
            length,
            self._chat.default_sampling_params,
            self._chat.override_max_tokens,
        )
        changes = {
            "n": 1,
            "stream": True,
            "stream_interval": None,
            "logprobs": False,
            "prompt_logprobs": None,
            "logprob_token_ids": None,
            "echo": False,
            "min_tokens": min(request.min_tokens, max_tokens, MAX_ANSWER_TOKENS),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
        }
        alone: ChatCompletionRequest = request.model_copy(update=changes)
        return alone.to_sampling_params(min(max_tokens, MAX_ANSWER_TOKENS), self._chat.default_sampling_params)

    async def _run(self, engine_input: MultiModalInput, params: SamplingParams) -> Run:
        answer: list[int] = []
        ttft = 0.0
        self._own += 1
        try:
            async for output in self._engine.generate(engine_input, params.clone(), f"dfmr-baseline-{uuid4().hex}"):
                answer += output.outputs[0].token_ids
                stats = output.metrics
                if stats is not None and stats.first_token_ts:
                    ttft = stats.first_token_ts - stats.scheduled_ts
        finally:
            self._own -= 1
        if ttft <= 0:
            raise RuntimeError("the engine told no time of a first token")
        return Run(ttft, answer)

    def _users(self) -> int:
        """Requests of users in the engine, and pictures of theirs in phase one."""
        encoder = self._renderer.encoder
        assert encoder is not None
        return max(0, self._engine.get_num_unfinished_requests() - self._own) + encoder.in_flight

    def _record(self, pair: Pair) -> None:
        labels = self._model, pair.profile
        TTFT.labels(*labels).observe(pair.compressed.ttft)
        BASELINE_TTFT.labels(*labels).observe(pair.whole.ttft)
        if pair.greedy:
            BASELINE_AGREEMENT.labels(*labels).observe(pair.overlap)
            BASELINE_ANSWERS.labels(*labels, "exact" if pair.exact else "different").inc()
        if self._log is not None:
            compared = (pair.overlap, pair.exact) if pair.greedy else (None, None)
            self._log.pair(pair.profile, pair.compressed.ttft, pair.whole.ttft, *compared)

    def _count(self, outcome: str) -> None:
        BASELINE_RUNS.labels(self._model, outcome).inc()


def token_overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """F1 of two answers as bags of tokens: twice the tokens in common over the tokens of both, 1 if both are empty.

    The measure that SQuAD's evaluation uses for answers (Rajpurkar et al., arXiv 1606.05250), over token ids.
    """
    if not one and not other:
        return 1.0
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))
