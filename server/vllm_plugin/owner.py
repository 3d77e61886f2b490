"""The engine that a renderer belongs to, where nobody tells it."""

import gc

from vllm.renderers.hf import HfRenderer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine


def owner_of(renderer: HfRenderer) -> AsyncLLM | LLMEngine:
    """The engine that holds a renderer.

    Offline `LLM(...)` and embedders of `AsyncLLM` build renderer and engine in one constructor that offers no hook in
    which they could meet, so the engine is looked for among all objects, once. vLLM freezes its heap after start-up,
    which hides objects from that search; it is frozen again afterwards.

    Raises:
        RuntimeError: there is none.
    """
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    try:
        engines = (o for o in gc.get_objects() if issubclass(type(o), (AsyncLLM, LLMEngine)))
        owner = next((engine for engine in engines if engine.renderer is renderer), None)
    finally:
        if frozen:
            gc.freeze()
    if owner is None:
        raise RuntimeError("dfmr: this renderer belongs to no engine, so pictures cannot be encoded")
    return owner
