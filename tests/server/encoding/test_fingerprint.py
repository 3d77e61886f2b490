"""An encoder is known again in another dtype, and told from one with other weights."""

import hashlib

import torch
from tower import SIDE, Tower, encoder_of
from transformers import CLIPVisionConfig, CLIPVisionModel

from server.encoding.fingerprint import CHANNELS, config_digest, fingerprint, fixed_picture


def features(seed: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=336, patch_size=14, initializer_factor=4.0)).to(dtype)
    pixels = torch.from_numpy(fixed_picture(336, 336))[None].to(dtype) / 127.5 - 1
    with torch.inference_mode():
        return model(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]


def test_dtypes_agree_and_other_weights_differ() -> None:
    known = fingerprint("c", features(0, torch.float32))
    assert len(known.features) == CHANNELS
    assert known.difference(fingerprint("c", features(0, torch.bfloat16))) is None
    assert "weights differ" in str(known.difference(fingerprint("c", features(1, torch.float32))))


def test_the_fixed_picture_never_changes() -> None:
    """Or every profile that was ever calibrated would be refused."""
    digest = hashlib.sha256(fixed_picture(336, 336).tobytes()).hexdigest()
    assert digest[:16] == "41fe9a4f4b56ae00"


def test_the_configuration_digest_depends_on_what_makes_features_and_on_nothing_else() -> None:
    preprocessor = encoder_of(Tower()).preprocessor
    vision = {"hidden_size": 64, "patch_size": 14}
    known = config_digest(vision, -2, "default", preprocessor)
    assert config_digest({**vision, "transformers_version": "5"}, -2, "default", preprocessor) == known
    assert config_digest({**vision, "hidden_size": 65}, -2, "default", preprocessor) != known
    assert config_digest(vision, -1, "default", preprocessor) != known


async def test_a_new_server_encodes_the_fixed_picture_first_and_pools_nothing() -> None:
    tower = Tower()
    made = await encoder_of(tower).warm_up()
    assert tower.encoded == 1
    assert len(made) == (SIDE // 4) ** 2
