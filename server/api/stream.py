"""Adds a field to the last chunk of a stream of server-sent events, without holding back the others."""

from collections.abc import AsyncIterator

_DONE = "data: [DONE]"
_COMMENT = ":"
_FINISHING = ('"finish_reason":"', '"choices":[]', '"type":"response.completed"')
"""What a last chunk looks like: a choice ends, the usage is told, a response is complete. Inside a JSON string quotes
are escaped, so generated text cannot look like this."""


async def with_last_chunk(chunks: AsyncIterator[str | bytes], field: str) -> AsyncIterator[str]:
    """The same stream with ``field`` (``"name":value``) in the JSON object of its last event before ``[DONE]``.

    Only chunks that may be the last are held until the next one is there, so tokens are passed on as they come.
    """
    held: str | None = None
    async for raw in chunks:
        chunk = raw if isinstance(raw, str) else raw.decode()
        if chunk.startswith(_COMMENT):
            yield chunk
            continue
        if chunk.startswith(_DONE):
            if held is not None:
                yield _extended(held, field)
                held = None
            yield chunk
            continue
        if held is not None:
            yield held
            held = None
        if any(mark in chunk for mark in _FINISHING):
            held = chunk
        else:
            yield chunk
    if held is not None:
        yield _extended(held, field)


def _extended(chunk: str, field: str) -> str:
    body, brace, rest = chunk.rpartition("}")
    return f"{body},{field}{brace}{rest}"
