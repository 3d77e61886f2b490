"""Pairs of runs are made only while nobody else wants the engine, and end for whoever comes."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from tower import Tower, encoder_of, flat
from vllm.v1.metrics.stats import RequestStateStats

from server.api import baseline as module
from server.api.baseline import MAX_ANSWER_TOKENS, MAX_WAITING, Baseline, token_overlap
from server.api.schemas import DfmrChatCompletionRequest
from server.encoding.encoder import Picture, PictureEncoder
from server.policy import DfmrOptions
from server.request import Rendered, RequestState
from server.savings import Savings
from server.vllm_plugin.renderer import DfmrRenderer

IMAGE = 7
tokens = st.lists(st.integers(0, 9), max_size=30)


class Engine:
    """An engine that takes a tenth of a second for each visual token, and writes down what it was asked."""

    def __init__(self) -> None:
        self.users = 0
        self.own = 0
        self.prompts: list[dict[str, Any]] = []
        self.params: list[Any] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failure: Exception | None = None
        self.aborted = 0

    def get_num_unfinished_requests(self) -> int:
        return self.users + self.own

    async def generate(self, prompt: dict[str, Any], params: Any, request_id: str) -> AsyncIterator[Any]:
        self.own += 1
        self.prompts.append(prompt)
        self.params.append(params)
        try:
            await self.open.wait()
            if self.failure:
                raise self.failure
            visual = prompt["prompt_token_ids"].count(IMAGE)
            stats = RequestStateStats(queued_ts=1.0, scheduled_ts=2.0, first_token_ts=2.0 + 0.1 * visual)
            for token in (1, 2, 3 if visual > 4 else 4):
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token])], metrics=stats)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.own -= 1


class Renderer:
    """The renderer's part in it, over a real encoder."""

    input_apart = DfmrRenderer.input_apart

    def __init__(self, encoder: PictureEncoder, name: str, max_model_len: int = 100) -> None:
        self.encoder = encoder
        self._image_token = IMAGE
        self.model_config = SimpleNamespace(served_model_name=name, max_model_len=max_model_len)


class Bench:
    """A `Baseline` that draws everything, over an engine and an encoder that stand still when they are told."""

    def __init__(self, encoder: PictureEncoder, name: str, **options: Any) -> None:
        self.engine = Engine()
        self.encoder = encoder
        self.name = name
        self.renderer = Renderer(encoder, name, **options)
        chat = SimpleNamespace(default_sampling_params={}, override_max_tokens=None)
        made: Any = (self.engine, self.renderer, chat)
        self.baseline = Baseline(*made, share=1, max_load=0)
        self.savings = Savings(name, encoder.grid, encoder.candidates)

    async def offer(self, colour: int = 90, **fields: Any) -> None:
        picture = Picture(flat(colour))
        options = DfmrOptions.model_validate(fields.pop("dfmr", {}))
        encoded = await self.encoder.encode([picture], self.encoder.policy.merge(options))
        request = DfmrChatCompletionRequest(messages=[], **{"max_tokens": 5, "temperature": 0, **fields})
        assert self.baseline.draws(request)
        rendered = Rendered([5, IMAGE, 6], [picture], encoded)
        state = RequestState(options, report=self.savings.report(encoded), keep_rendered=True, rendered=rendered)
        await self.baseline.offer(request, state)

    def total(self, sample: str, **labels: str) -> float:
        labels = {"model_name": self.name, **labels}
        if not sample.startswith("dfmr_baseline_runs"):
            labels["profile"] = "default"
        return REGISTRY.get_sample_value(sample, labels) or 0.0

    def outcomes(self) -> dict[str, int]:
        counts = {outcome: int(self.total("dfmr_baseline_runs_total", outcome=outcome)) for outcome in module.OUTCOMES}
        return {outcome: count for outcome, count in counts.items() if count}

    async def settle(self, **outcomes: int) -> None:
        async with asyncio.timeout(20):
            while self.outcomes() != outcomes:
                await asyncio.sleep(0)


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> Bench:
    return make(request.node.name)


def make(name: str, **options: Any) -> Bench:
    """A bench of its own metrics, over the tests' small encoder, whose pictures have 64 tokens."""
    return Bench(encoder_of(Tower(), name=name), name, **options)


async def test_a_pair_differs_in_its_visual_tokens_and_shares_no_cached_state(bench: Bench) -> None:
    await bench.offer()
    await bench.settle(measured=1)
    compressed, whole = bench.engine.prompts
    assert [p["prompt_token_ids"].count(IMAGE) for p in (compressed, whole)] == [4, 64]
    assert compressed["cache_salt"] != whole["cache_salt"]
    assert compressed["mm_hashes"] != whole["mm_hashes"]
    assert bench.engine.params[0] == bench.engine.params[1]
    assert bench.total("dfmr_ttft_seconds_sum") == pytest.approx(0.4)
    assert bench.total("dfmr_baseline_ttft_seconds_sum") == pytest.approx(6.4)
    assert bench.total("dfmr_baseline_answers_total", match="different") == 1
    assert bench.total("dfmr_baseline_agreement_sum") == pytest.approx(2 / 3)


async def test_the_two_take_turns_in_being_first(bench: Bench) -> None:
    await bench.offer()
    await bench.offer(colour=10)
    await bench.settle(measured=2)
    assert [p["prompt_token_ids"].count(IMAGE) for p in bench.engine.prompts] == [4, 64, 64, 4]


async def test_the_whole_picture_is_neither_cached_nor_counted_as_a_hit_or_a_miss(bench: Bench) -> None:
    await bench.offer()
    before = bench.encoder._cache.nbytes
    await bench.settle(measured=1)
    assert bench.encoder._cache.nbytes == before
    assert bench.total("dfmr_visual_tokens_total", stage="kept") == 0
    assert [
        REGISTRY.get_sample_value(f"dfmr_cache_{n}_total", {"model_name": bench.name}) for n in ("hits", "misses")
    ] == [
        0,
        1,
    ]


async def test_a_busy_engine_is_waited_for_and_at_last_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.engine.users = 1
    await bench.offer()
    await asyncio.sleep(0.1)
    assert bench.outcomes() == {}
    bench.engine.users = 0
    await bench.settle(measured=1)
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.0)
    bench.engine.users = 1
    await bench.offer()
    await bench.settle(measured=1, busy=1)
    assert len(bench.engine.prompts) == 2


async def test_a_run_gives_way_to_a_user_who_comes(bench: Bench) -> None:
    bench.engine.open.clear()
    await bench.offer()
    async with asyncio.timeout(20):
        while not bench.engine.prompts:
            await asyncio.sleep(0)
    bench.engine.users = 1
    await bench.settle(gave_way=1)
    assert (bench.engine.aborted, bench.engine.own) == (1, 0)
    assert bench.total("dfmr_ttft_seconds_count") == bench.total("dfmr_baseline_ttft_seconds_count") == 0


async def test_no_more_than_a_few_requests_wait(bench: Bench) -> None:
    bench.engine.users = 1
    for _ in range(MAX_WAITING + 4):
        await bench.offer()
        await asyncio.sleep(0.03)
    assert bench.outcomes() == {"backlog": 3}


async def test_a_failure_is_counted_and_the_next_request_is_measured(bench: Bench) -> None:
    bench.engine.failure = RuntimeError("no")
    await bench.offer()
    await bench.settle(failed=1)
    bench.engine.failure = None
    await bench.offer()
    await bench.settle(failed=1, measured=1)


async def test_a_prompt_that_is_too_long_uncompressed_is_not_run(request: pytest.FixtureRequest) -> None:
    bench = make(request.node.name, max_model_len=60)
    await bench.offer()
    await bench.settle(too_long=1)
    assert bench.engine.prompts == []


async def test_at_another_temperature_times_are_compared_and_answers_are_not(bench: Bench) -> None:
    await bench.offer(temperature=0.7)
    await bench.settle(measured=1)
    assert bench.total("dfmr_ttft_seconds_count") == 1
    assert bench.total("dfmr_baseline_agreement_count") == 0


async def test_answers_are_bounded_and_single_whatever_was_asked_for(bench: Bench, request: Any) -> None:
    bench = make(f"{request.node.name}-long", max_model_len=10_000)
    await bench.offer(max_tokens=None, n=3, temperature=1, min_tokens=600, logprobs=True, top_logprobs=2)
    await bench.settle(measured=1)
    (params, _) = bench.engine.params
    assert (params.max_tokens, params.n, params.logprobs) == (MAX_ANSWER_TOKENS, 1, None)


async def test_pictures_that_kept_every_token_are_not_run_again(bench: Bench) -> None:
    await bench.offer(dfmr={"enabled": False})
    await asyncio.sleep(0.1)
    assert (bench.outcomes(), bench.engine.prompts) == ({}, [])


async def test_nothing_outlives_the_shutdown(bench: Bench) -> None:
    bench.engine.open.clear()
    await bench.offer()
    async with asyncio.timeout(20):
        while not bench.engine.prompts:
            await asyncio.sleep(0)
    await asyncio.to_thread(bench.baseline.close)
    async with asyncio.timeout(20):
        while bench.engine.own:
            await asyncio.sleep(0)
    await bench.offer()
    assert len(bench.engine.prompts) == 1


@given(tokens, tokens)
def test_overlap_is_symmetric_one_for_the_same_and_zero_without_a_token_in_common(one: Any, other: Any) -> None:
    assert token_overlap(one, other) == token_overlap(other, one)
    assert 0 <= token_overlap(one, other) <= 1
    assert token_overlap(one, one) == 1
    assert token_overlap([1], [2]) == 0
    assert token_overlap([1, 2], [2, 1, 3, 3]) == pytest.approx(2 * 2 / 6)
