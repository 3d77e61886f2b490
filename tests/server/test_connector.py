"""Pictures stay files within a request of ours, and are what vLLM makes of them everywhere else."""

from pathlib import Path

import pytest
from pictures import data_url, encoded, flat, scene
from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from server.encoding.content import PictureFile
from server.errors import PictureError
from server.vllm_plugin.connector import DfmrMediaConnector, reading


def connector(folder: Path | None = None, **image: object) -> DfmrMediaConnector:
    return DfmrMediaConnector(
        media_io_kwargs={"image": image}, allowed_local_media_path=str(folder) if folder else "", connection=None
    )


async def test_outside_of_our_requests_pictures_are_decoded_as_upstream_does() -> None:
    url = data_url(scene(1))
    for found in (connector().fetch_image(url), await connector().fetch_image_async(url)):
        assert isinstance(found, MediaWithBytes)
        assert isinstance(found.media, Image.Image)
    with pytest.raises(PictureError, match=r"^its data is not a picture") as caught:
        connector().fetch_image("data:image/png;base64,aGVsbG8=")
    assert caught.value.index is None


@pytest.mark.parametrize("source", ["data", "file"])
async def test_in_our_requests_pictures_stay_files(source: str, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(encoded(scene(1)))
    url = data_url(scene(1)) if source == "data" else path.as_uri()
    with reading([url]):
        one, other = connector(tmp_path).fetch_image(url), await connector(tmp_path).fetch_image_async(url)
    assert isinstance(one, PictureFile)
    assert isinstance(other, PictureFile)
    assert one.key == other.key
    assert one.decoded().tobytes() == scene(1).convert("RGB").tobytes()


async def test_the_operators_way_of_reading_is_kept() -> None:
    url = data_url(Image.new("RGBA", (4, 4), (1, 2, 3, 0)))
    with reading([url]):
        usual, other = connector().fetch_image(url), connector(image_mode=None).fetch_image(url)
    assert (usual.decoded().mode, other.decoded().mode) == ("RGB", "RGBA")
    assert usual.key != other.key


@pytest.mark.parametrize(
    ("url", "reason", "says"),
    [
        ("data:image/png;base64,aGVsbG8=", "decode", "not a picture"),
        ("data:image/png;base64,!!!!", "decode", "base64"),
        ("data:image/png", "decode", "separator"),
        ("ftp://example.invalid/x.png", "fetch", "HTTP, data or file URL"),
        ("file:///etc/hostname", "fetch", "--allowed-local-media-path"),
    ],
)
async def test_what_cannot_be_fetched_is_named_by_its_place(url: str, reason: str, says: str) -> None:
    with reading([data_url(flat()), url]):
        for fetch in (connector().fetch_image, None):
            with pytest.raises(PictureError, match=f"^image 1: .*{says}") as caught:
                _ = fetch(url) if fetch else await connector().fetch_image_async(url)
            assert (caught.value.index, caught.value.reason) == (1, reason)
