"""`with_last_chunk` adds its field to the last event of a stream, and to nothing else, without holding tokens back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from server.api.stream import with_last_chunk

FIELD = '"dfmr":{"saved_visual_tokens":432}'
ADDED = {"saved_visual_tokens": 432}
DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"


def event(body: dict[str, Any]) -> str:
    """As vLLM writes one: pydantic's compact JSON."""
    return f"data: {json.dumps(body, separators=(',', ':'), ensure_ascii=False)}\n\n"


def token(text: str, index: int = 0, finish: str | None = None, **extra: Any) -> str:
    choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **extra})


def usage() -> str:
    return event({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 160, "total_tokens": 170}})


def parsed(chunk: str) -> dict[str, Any]:
    data = next(line for line in chunk.splitlines() if line.startswith("data: "))
    body: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return body


async def streamed(chunks: Iterable[str | bytes]) -> AsyncIterator[str | bytes]:
    for chunk in chunks:
        yield chunk


async def through(chunks: list[str]) -> list[str]:
    return [chunk async for chunk in with_last_chunk(streamed(chunks), FIELD)]


def assert_only_extended(before: list[str], after: list[str], index: int) -> None:
    """The streams are the same, but for the field at the end of one event's object."""
    assert parsed(after[index]) == {**parsed(before[index]), "dfmr": ADDED}
    assert after[:index] + after[index + 1 :] == before[:index] + before[index + 1 :]
    assert after[index].endswith("}\n\n")


FIRST = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


async def test_the_finishing_chunk_gets_the_field() -> None:
    chunks = [FIRST, token("A"), token(" gauge."), token("", finish="stop"), DONE]
    assert_only_extended(chunks, await through(chunks), 3)


async def test_with_include_usage_the_usage_chunk_gets_it() -> None:
    chunks = [FIRST, token("A"), token("", finish="length"), usage(), DONE]
    assert_only_extended(chunks, await through(chunks), 3)


async def test_a_single_chunk_that_says_all_gets_it() -> None:
    chunks = [token("A gauge.", finish="stop"), DONE]
    assert_only_extended(chunks, await through(chunks), 0)


async def test_of_several_choices_only_the_last_to_end_gets_it() -> None:
    chunks = [
        token("A", 0),
        token("B", 1),
        token("", 1, finish="stop"),
        token("C", 0),
        token("", 0, finish="stop"),
        DONE,
    ]
    assert_only_extended(chunks, await through(chunks), 4)


async def test_choices_that_end_together_with_usage_after_them_leave_the_field_to_the_usage() -> None:
    chunks = [token("A", 0), token("", 0, finish="stop"), token("", 1, finish="stop"), usage(), DONE]
    assert_only_extended(chunks, await through(chunks), 3)


async def test_usage_in_every_chunk_does_not_change_that() -> None:
    chunks = [token("A", usage={"total_tokens": 1}), token("", finish="stop", usage={"total_tokens": 2}), usage(), DONE]
    assert_only_extended(chunks, await through(chunks), 2)


@pytest.mark.parametrize("place", range(5))
async def test_keep_alive_comments_pass_through_wherever_they_come(place: int) -> None:
    chunks = [FIRST, token("A"), token("", finish="stop"), usage(), DONE]
    with_comment = [*chunks[:place], KEEP_ALIVE, *chunks[place:]]
    after = await through(with_comment)
    assert after.count(KEEP_ALIVE) == 1
    assert_only_extended(chunks, [chunk for chunk in after if chunk != KEEP_ALIVE], 3)


@pytest.mark.parametrize(
    "text",
    ['"finish_reason":"stop"', '"choices":[]', '"type":"response.completed"', "data: [DONE]", 'back\\slash"}', "}\n\n"],
)
async def test_generated_text_that_looks_like_the_end_is_text(text: str) -> None:
    chunks = [token(text), token("more"), token(text), token("", finish="stop"), DONE]
    assert_only_extended(chunks, await through(chunks), 3)


@pytest.mark.parametrize("text", ['"finish_reason":"stop"', '"choices":[]'])
async def test_generated_text_that_looks_like_the_end_is_not_held(text: str) -> None:
    produced: list[str] = []

    async def source() -> AsyncIterator[str]:
        for chunk in [token(text), token("more"), DONE]:
            produced.append(chunk)
            yield chunk

    stream = with_last_chunk(source(), FIELD)
    assert await anext(stream) == token(text)
    assert len(produced) == 1


async def test_text_of_every_script_survives() -> None:
    chunks = [token("計器 🧭 Ünïcode"), token("", finish="stop"), DONE]
    assert_only_extended(chunks, await through(chunks), 1)


async def test_bytes_are_taken_too() -> None:
    chunks = [token("計器"), token("", finish="stop"), DONE]
    after = [chunk async for chunk in with_last_chunk(streamed([c.encode() for c in chunks]), FIELD)]
    assert_only_extended(chunks, after, 1)


async def test_a_stream_without_done_gets_it_at_its_end() -> None:
    chunks = [token("A"), token("", finish="stop")]
    assert_only_extended(chunks, await through(chunks), 1)


async def test_a_response_stream_gets_it_in_its_completion() -> None:
    """The responses API names its events and ends without ``[DONE]``."""

    def named(kind: str, **body: Any) -> str:
        return f"event: {kind}\n{event({'type': kind, **body})}"

    chunks = [
        named("response.created", response={"id": "resp_1", "status": "in_progress"}),
        named("response.output_text.delta", delta='"type":"response.completed"'),
        named("response.completed", response={"id": "resp_1", "status": "completed", "output": []}),
    ]
    assert_only_extended(chunks, await through(chunks), 2)


async def test_a_stream_that_fails_on_the_way_is_passed_on_as_it_is() -> None:
    error = event({"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}})
    chunks = [FIRST, token("A"), error, DONE]
    assert await through(chunks) == chunks


async def test_a_stream_that_breaks_off_is_passed_on_as_far_as_it_came() -> None:
    chunks = [FIRST, token("A")]
    assert await through(chunks) == chunks


async def test_an_error_after_a_choice_ended_is_passed_on_in_order() -> None:
    error = event({"error": {"message": "out of memory", "code": 500}})
    chunks = [token("", 0, finish="stop"), error, DONE]
    after = await through(chunks)
    assert [parsed(chunk).get("choices") for chunk in after[:1]] == [parsed(chunks[0])["choices"]]
    assert after[1:] == [error, DONE]


@pytest.mark.parametrize("chunks", [[], [DONE]])
async def test_an_empty_stream_stays_empty(chunks: list[str]) -> None:
    assert await through(chunks) == chunks


async def test_a_token_is_passed_on_before_the_next_is_made() -> None:
    produced: list[int] = []
    go_on = asyncio.Event()

    async def model() -> AsyncIterator[str]:
        for i in range(3):
            produced.append(i)
            yield token(str(i))
            await go_on.wait()
            go_on.clear()
        yield token("", finish="stop")
        yield DONE

    stream = with_last_chunk(model(), FIELD)
    for i in range(3):
        chunk = await asyncio.wait_for(anext(stream), 5)
        assert parsed(chunk)["choices"][0]["delta"]["content"] == str(i)
        assert produced == list(range(i + 1))
        go_on.set()
    rest = [chunk async for chunk in stream]
    assert "dfmr" in parsed(rest[0])
    assert rest[1] == DONE


async def test_an_exception_of_the_model_reaches_the_server() -> None:
    async def model() -> AsyncIterator[str]:
        yield token("A")
        raise ConnectionResetError

    stream = with_last_chunk(model(), FIELD)
    await anext(stream)
    with pytest.raises(ConnectionResetError):
        await anext(stream)
