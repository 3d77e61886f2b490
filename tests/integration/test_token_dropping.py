"""Token dropping, the control that evaluations compare DFMR with, through the real engine."""

from typing import Any

import pytest
from pictures import message, scene
from serving import Server

pytestmark = pytest.mark.engine


def ask(server: Server, method: str) -> Any:
    return server.client.chat.completions.create(
        model="small",
        messages=message(scene(41)),
        max_tokens=4,
        temperature=0,
        extra_body={"dfmr": {"factors": [2], "method": method}},
    )


@pytest.mark.parametrize("method", ["drop-cls", "drop-random"])
def test_a_control_keeps_as_many_tokens_as_pooling_and_is_cached_apart_from_it(server: Server, method: str) -> None:
    pooled, dropped, again = ask(server, "dfmr"), ask(server, method), ask(server, method)
    assert pooled.dfmr["kept_visual_tokens"] == dropped.dfmr["kept_visual_tokens"] == 144
    assert pooled.usage.prompt_tokens == dropped.usage.prompt_tokens
    assert not dropped.dfmr["images"][0]["cached"]
    assert again.dfmr["images"][0]["cached"]
    assert again.choices[0].message.content == dropped.choices[0].message.content
