"""Phase one's chain for one picture, link by link, with the server's own functions in this process.

What cannot be called alone is taken from the server's metrics: an encode call as a whole, of which the links that are
known leave a rest, the RPC.
"""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec
import torch
from transformers import AutoImageProcessor, CLIPVisionConfig, CLIPVisionModel
from vllm.multimodal.media import ImageMediaIO

from dfmr_kernels import reduce
from loadtests.models import FACTORS, Shape
from loadtests.pictures import Gallery
from loadtests.results import Step
from server.encoding.jobs import EncodedPicture, EncodeJob, EncodeResult, joined
from server.encoding.preprocess import Preprocessor
from server.vllm_plugin.connector import PictureFileIO
from server.vllm_plugin.processing import prompt_with_features
from server.vllm_plugin.replies import results_of
from server.vllm_plugin.worker import normalised

REPEATS = 15
_IMAGE_TOKEN = 3
_FACTOR = 2
_POOL = "API process, thread pool"
_LOOP = "API process, event loop"
_ENGINE = "engine, between two steps"


def measure(shape: Shape, checkpoint: Path, encode_seconds: float | None) -> list[Step]:
    """Time every link for one photograph, pooled 2 x 2, on one thread.

    Several threads would wait for each other at every operation where servers share the cores, and show that instead.

    Args:
        checkpoint: the bench model's folder.
        encode_seconds: of one picture in an encode call of the server under load, if it is known.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(shape, checkpoint, encode_seconds)
    finally:
        torch.set_num_threads(threads)


def _measure(shape: Shape, checkpoint: Path, encode_seconds: float | None) -> list[Step]:
    data, _ = Gallery(seed=0).take("photograph")
    encoded = base64.b64encode(data).decode()
    reader = PictureFileIO(ImageMediaIO())
    picture = reader.load_base64("image/jpeg", encoded)
    decoded = picture.decoded()
    preprocessor = Preprocessor.from_processor(AutoImageProcessor.from_pretrained(checkpoint, backend="pil"))
    pixels = preprocessor(decoded)
    job = EncodeJob(pixels, ())
    sent = [joined([job]), [1, *pixels.shape]]
    tower = _tower(shape)
    inputs = torch.from_numpy(pixels)[None].to(torch.bfloat16)
    feature_map = _map(tower, inputs)
    decided = [[float("inf") if s == _FACTOR else float("-inf") for s in FACTORS]]
    packed = reduce(feature_map, FACTORS, decided, "mean").features
    reply = {"features": packed.view(torch.uint8).numpy().tobytes(), "dtype": "bfloat16", "layouts": [[0, [_FACTOR]]]}
    reply |= {"scores": [0.0] * len(FACTORS), "windows": bytes(4)}
    grid = feature_map.shape[1], feature_map.shape[2]
    (encoded_result,) = results_of([[reply]], grid)
    assert isinstance(encoded_result, EncodeResult)
    result = EncodedPicture(encoded_result.features, encoded_result.scores, "key", False)
    prompt = [1, *range(10, 40), _IMAGE_TOKEN, *range(10, 40)]
    wire = msgspec.msgpack.encode(reply)
    raw = torch.from_numpy(pixels)[None]

    def back() -> bytes:
        return msgspec.msgpack.encode({**reply, "features": packed.view(torch.uint8).numpy().tobytes()})

    before = [
        _step("base64, hash", lambda: reader.load_base64("image/jpeg", encoded), _POOL),
        _step("decode JPEG", picture.decoded, _POOL),
        _step("resize, crop, transpose", lambda: preprocessor(decoded), _POOL),
    ]
    inside = [
        _step("copy: one batch's bytes", lambda: joined([job]), _LOOP),
        _step("copy: serialise and back", lambda: msgspec.msgpack.decode(msgspec.msgpack.encode(sent)), _LOOP),
        _step("copy: bytes to tensor", lambda: torch.frombuffer(bytearray(sent[0]), dtype=torch.uint8), _ENGINE),
        _step("normalise", lambda: normalised(raw, preprocessor.normalisation), _ENGINE),
        _step("vision tower", lambda: _map(tower, inputs), _ENGINE),
        _step("DFMR", lambda: reduce(feature_map, FACTORS, decided, "mean"), _ENGINE),
        _step("reply: tensor to bytes, serialise", back, _ENGINE),
        _step("parse: bytes to tensor", lambda: results_of([[msgspec.msgpack.decode(wire)]], grid), _LOOP),
    ]
    after = [_step("placeholders", lambda: prompt_with_features(prompt, _IMAGE_TOKEN, [result]), _LOOP)]
    after.append(
        Step(name="hash again", seconds=0, where=_LOOP, source="not done: the first hash goes with the picture")
    )
    if encode_seconds is not None:
        rest = max(0.0, encode_seconds - sum(step.seconds for step in inside))
        source = "an encode call under load less the links above in it; 0 where the engine has more threads"
        inside.append(
            Step(name="RPC: queues, and the wait for the engine's step", seconds=rest, where=_ENGINE, source=source)
        )
    return [*before, *inside, *after]


def _step(name: str, work: Callable[[], object], where: str) -> Step:
    return Step(name=name, seconds=_time(work), where=where, source="timed alone, one thread")


def _time(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def _tower(shape: Shape) -> CLIPVisionModel:
    width, inner, layers, heads = shape.tower
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers - 1,
        num_attention_heads=heads,
        image_size=shape.image_size,
        patch_size=14,
    )
    return CLIPVisionModel(config).to(torch.bfloat16).eval()


@torch.inference_mode()
def _map(tower: CLIPVisionModel, inputs: torch.Tensor) -> torch.Tensor:
    tokens: torch.Tensor = tower(inputs).last_hidden_state[:, 1:]
    side = int(tokens.shape[1] ** 0.5)
    grid: torch.Tensor = tokens.unflatten(1, (side, side))
    return grid
