"""Offline `LLM(...)`, and what a picture costs in KV blocks, in an engine that lives in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.standin import write_checkpoint

pytestmark = pytest.mark.engine
SUPPORT = Path(__file__).parents[1] / "support"
BLOCK = 32

SCRIPT = '''
import json, sys
from pictures import flat, message, noise
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.renderers import ChatParams

llm = LLM(
    sys.argv[1], enforce_eager=True, max_model_len=2048, enable_prefix_caching=False, block_size=int(sys.argv[2])
)
greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
both = llm.chat(message(flat(), noise()), greedy, use_tqdm=False)[0]
low = message(noise())
low[0]["content"][0]["image_url"]["detail"] = "low"

def blocks(prompt):
    """KV blocks that the scheduler holds for a request after its prefill."""
    engine = llm.llm_engine
    name = engine.add_request("blocks", prompt, greedy)
    scheduler = engine.engine_core.engine_core.scheduler
    engine.step()
    held = sum(len(group) for group in scheduler.kv_cache_manager.get_blocks(name).blocks)
    while engine.has_unfinished_requests():
        engine.step()
    return held

_, (compressed, full) = llm.renderer.render_chat([message(flat()), message(noise())], ChatParams())
text = TokensPrompt(prompt_token_ids=[7] * len(compressed["prompt_token_ids"]))
print("RESULT", json.dumps({
    "visual": both.prompt_token_ids.count(3),
    "low": llm.chat(low, greedy, use_tqdm=False)[0].prompt_token_ids.count(3),
    "answer": len(both.outputs[0].token_ids),
    "tokens": [len(compressed["prompt_token_ids"]), len(full["prompt_token_ids"])],
    "blocks": [blocks(compressed), blocks(text), blocks(full)],
}))
'''


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("offline")
    write_checkpoint(folder / "model")
    environment = {
        **os.environ,
        "VLLM_PLUGINS": "dfmr",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": str(SUPPORT),
    }
    command = [sys.executable, "-c", SCRIPT, str(folder / "model"), str(BLOCK)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def test_chat_compresses_without_a_server(offline: dict[str, Any]) -> None:
    assert offline["visual"] == 16 + 576
    assert offline["answer"] == 4


def test_detail_is_honoured(offline: dict[str, Any]) -> None:
    assert offline["low"] == 16


def test_a_compressed_picture_takes_the_kv_blocks_of_a_text_of_its_length(offline: dict[str, Any]) -> None:
    compressed, text, full = offline["blocks"]
    assert compressed == text
    kept, all_tokens = offline["tokens"]
    assert full - compressed == -(-all_tokens // BLOCK) - -(-kept // BLOCK)
