"""What chat messages say about their pictures besides the pictures themselves: their URLs, details and boxes."""

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, get_args

from vllm.renderers.inputs import DictPrompt

from server.encoding.encoder import Picture
from server.encoding.preprocess import Box
from server.errors import PictureError
from server.policy import Detail, DfmrOptions, read_boxes


def pictures_of(messages: Sequence[Any]) -> tuple[list[str], list[Picture]]:
    """URLs of the pictures in chat messages and what is said about them, in the order in which vLLM numbers them."""
    urls: list[str] = []
    details: list[Picture] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, Sequence) and not isinstance(content, str) else ():
            if not isinstance(part, Mapping):
                continue
            image = part.get("image_url")
            if image is None and "image_pil" not in part:
                continue
            nested = image if isinstance(image, Mapping) else {"url": image}
            urls.append(str(nested.get("url") or ""))
            index = len(urls) - 1
            detail = _detail(index, nested.get("detail") or part.get("detail") or "auto")
            details.append(Picture(None, detail, _boxes(index, nested.get("protect") or part.get("protect") or ())))
    return urls, details


def detail_of(value: Any) -> Any:
    """OpenAI's ``original`` asks for all that there is, as ``high`` does here."""
    return "high" if value == "original" else value


def _detail(index: int, value: Any) -> Detail:
    value = detail_of(value)
    if value not in get_args(Detail):
        raise PictureError(index, "detail", f"detail must be one of {', '.join(get_args(Detail))}, not {value!r}")
    detail: Detail = value
    return detail


def _boxes(index: int, value: Any) -> tuple[Box, ...]:
    try:
        return read_boxes(value)
    except ValueError as error:
        raise PictureError(index, "policy", str(error)) from error


def protected(pictures: list[Picture], options: DfmrOptions | None) -> list[Picture]:
    """The pictures with the boxes that the request's ``dfmr`` object names for them."""
    boxes = (options and options.protect) or ()
    if len(boxes) > len(pictures):
        raise PictureError(
            None, "policy", f"dfmr.protect: has boxes for {len(boxes)} pictures, the request has {len(pictures)}"
        )
    return [p._replace(protect=p.protect + more) for p, more in zip(pictures, chain(boxes, repeat(())), strict=False)]


def with_details(prompt: DictPrompt, details: Sequence[Picture]) -> DictPrompt:
    """The prompt with its pictures as `Picture`, each with what its message says about it."""
    data: Any = prompt.get("multi_modal_data")
    images = data.get("image") if data else None
    if isinstance(images, Sequence) and len(images) == len(details):  # Embeddings are a tensor or a dictionary.
        data["image"] = [one._replace(image=image) for image, one in zip(data["image"], details, strict=True)]
    return prompt


def image_of(item: Any) -> Any:
    """A picture itself, with or without what is said about it."""
    return item.image if isinstance(item, Picture) else item
