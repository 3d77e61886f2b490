"""Budgets, regions and protected boxes, as a client of the OpenAI API asks for them and is told about them."""

from typing import Any

import httpx
import pytest
from pictures import data_url, flat, message, noise, part, scene
from PIL import Image
from serving import MAX_IMAGES, MAX_MODEL_LEN, Server

pytestmark = pytest.mark.engine
FULL = 576


def ask(server: Server, *pictures: Any, text: str = "?", max_tokens: int = 2, **dfmr: Any) -> Any:
    return server.client.chat.completions.create(
        model="small",
        messages=message(*pictures, text=text),  # type: ignore[arg-type]
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"dfmr": dfmr},
    )


def assert_placeholders_match(response: Any) -> None:
    report = response.dfmr
    visual = response.usage.prompt_tokens_details.multimodal_tokens["image"]
    assert sum(image["kept_tokens"] for image in report["images"]) == report["kept_visual_tokens"] == visual


def gauge(seed: int = 5) -> Image.Image:
    """A wall with something on it."""
    picture = flat((480, 480))
    picture.paste(noise(seed, (120, 120)), (180, 180))
    return picture


def test_pictures_that_would_not_fit_the_context_are_fitted(server: Server) -> None:
    pictures = [noise(200 + i) for i in range(MAX_IMAGES)]
    response = ask(server, *pictures, text="word " * 200, max_tokens=40)
    report = response.dfmr
    assert report["squeezed"]["reason"] == "fit_context"
    assert response.usage.prompt_tokens + 40 <= MAX_MODEL_LEN
    assert report["kept_visual_tokens"] <= report["squeezed"]["max_visual_tokens"]
    squeezed = [image for image in report["images"] if image["squeezed_from"]]
    assert 0 < len(squeezed) < MAX_IMAGES
    assert all(image["squeezed_from"]["kept_tokens"] == FULL > image["kept_tokens"] for image in squeezed)
    assert_placeholders_match(response)

    longer = ask(server, *pictures, text="word " * 200, max_tokens=3000)
    assert longer.usage.prompt_tokens + 3000 <= MAX_MODEL_LEN
    assert longer.dfmr["kept_visual_tokens"] < report["kept_visual_tokens"]
    assert all(image["cached"] for image in ask(server, *pictures, text="word " * 200, max_tokens=40).dfmr["images"])


def test_fitting_can_be_turned_off(server: Server) -> None:
    pictures = [noise(200 + i) for i in range(MAX_IMAGES)]
    body = {"model": "small", "messages": message(*pictures, text="word " * 200), "dfmr": {"fit_context": False}}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 400
    assert "too long even compressed" in reply.json()["error"]["message"]


def test_a_budget_holds_for_all_pictures_together(server: Server) -> None:
    pictures = [noise(1), scene(9), noise(2), flat()]
    free = ask(server, *pictures)
    assert free.dfmr["squeezed"] is None
    kept = [free.dfmr["kept_visual_tokens"]]
    for budget in (900, 400, 64):
        response = ask(server, *pictures, max_visual_tokens=budget)
        assert response.dfmr["squeezed"] == {"reason": "max_visual_tokens", "max_visual_tokens": budget}
        assert response.dfmr["kept_visual_tokens"] <= budget
        assert response.dfmr["images"][3]["squeezed_from"] is None
        assert_placeholders_match(response)
        kept.append(response.dfmr["kept_visual_tokens"])
    assert kept == sorted(kept, reverse=True)
    again = ask(server, *pictures, max_visual_tokens=400)
    assert [i["factor"] for i in again.dfmr["images"]] == [
        i["factor"] for i in ask(server, *pictures, max_visual_tokens=400).dfmr["images"]
    ]


def test_regions_keep_the_gauge_and_pool_the_wall(server: Server) -> None:
    options = {"mode": "regions", "factors": [1, 2, 4], "tau": 1.0}
    response = ask(server, gauge(), **options)
    (image,) = response.dfmr["images"]
    assert (image["grid"], image["factor"]) == (None, None)
    regions = image["regions"]
    assert regions["block"] == 4
    assert [len(row) for row in regions["factors"]] == [6] * 6
    assert regions["factors"][0][0] > regions["factors"][2][2] == 1
    assert image["kept_tokens"] == sum((4 // s) ** 2 for row in regions["factors"] for s in row) < FULL
    assert_placeholders_match(response)
    assert server.total("dfmr_images_total", factor="mixed") > 0
    squeezed = ask(server, gauge(), gauge(6), **options, max_visual_tokens=150)
    assert squeezed.dfmr["kept_visual_tokens"] <= 150
    assert_placeholders_match(squeezed)


def test_a_protected_box_is_kept_wherever_it_is_named(server: Server) -> None:
    box = [0.0, 0.0, 0.25, 0.25]
    beside = part(flat((300, 300)))
    beside["image_url"]["protect"] = [box]
    content = [beside, {"type": "text", "text": "?"}]
    first: Any = server.client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
        max_tokens=1,
    )
    second = ask(server, flat((300, 300)), protect=[[box]])
    for response in (first, second):
        (image,) = response.dfmr["images"]
        assert image["regions"] == {"block": 6, "factors": [[1, 6, 6, 6]] + [[6] * 4] * 3}
        assert image["kept_tokens"] == 36 + 15
        assert_placeholders_match(response)
    plain = ask(server, flat((300, 300)), flat((300, 300)), protect=[[], [box]])
    assert [image["kept_tokens"] for image in plain.dfmr["images"]] == [16, 51]


def test_responses_take_protected_boxes_too(server: Server) -> None:
    response: Any = server.client.responses.create(
        model="small",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": data_url(flat((300, 300))), "detail": "auto"},
                    {"type": "input_text", "text": "?"},
                ],
            }
        ],
        max_output_tokens=2,
        extra_body={"dfmr": {"protect": [[[0.0, 0.0, 0.25, 0.25]]], "max_visual_tokens": 100}},
    )
    assert response.dfmr["kept_visual_tokens"] == 51


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_visual_tokens": 20}, "the fewest possible is 32"),
        ({"max_visual_tokens": 0}, "dfmr.max_visual_tokens"),
        ({"mode": "region"}, "dfmr.mode"),
        ({"fit_context": "perhaps"}, "dfmr.fit_context"),
        ({"protect": [[[0, 0, 2, 1]]]}, "dfmr.protect"),
        ({"protect": [[[0.5, 0, 0.5, 1]]]}, "left < right"),
        ({"protect": [[], [], []]}, "has boxes for 3 pictures, the request has 2"),
        ({"method": "drop-random", "mode": "regions"}, "knows no regions"),
        ({"mode": "regions", "max_tokens_per_image": 20}, "the fewest possible is"),
        ({"max_tokens_per_image": 80, "protect": [[[0, 0, 1, 1]]]}, "image 0: dfmr.max_tokens_per_image: 80"),
    ],
)
def test_what_makes_no_sense_is_named(server: Server, options: dict[str, Any], says: str) -> None:
    body = {"model": "small", "messages": message(noise(1), noise(2)), "max_tokens": 1, "dfmr": options}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 400, reply.text
    assert says in reply.json()["error"]["message"]


def test_a_box_beside_a_picture_that_is_none_is_named_with_its_index(server: Server) -> None:
    wrong = part(flat())
    wrong["image_url"]["protect"] = [[0.5, 0.5]]
    content = [part(flat()), wrong, {"type": "text", "text": "?"}]
    body = {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 400
    assert "image 1: protect must be a list of boxes" in reply.json()["error"]["message"]


def test_explain_shows_the_blocks_and_what_would_change_them(server: Server) -> None:
    options = {"mode": "regions", "factors": [1, 2, 4], "tau": 1.0}
    url = data_url(gauge())
    body = {"image_url": {"url": url, "protect": [[0.0, 0.0, 0.1, 0.1]]}, "dfmr": options}
    explanation = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=120).json()
    regions = explanation["regions"]
    assert explanation["factor"] is None
    assert regions["protected"] == [[True] + [False] * 5] + [[False] * 6] * 5
    assert regions["factors"][0][0] == 1
    assert regions["factors"][0][1] > 1
    for row, factors in enumerate(regions["factors"]):
        for column, s in enumerate(factors):
            if s > 1:
                assert regions["scores"][str(s)][row][column] < 1.0
    assert explanation["overlay"].startswith("data:image/png;base64,")
    for other in explanation["alternatives"][:3]:
        response = ask(server, gauge(), **{**options, "tau": other["tau"]}, protect=[[[0.0, 0.0, 0.1, 0.1]]])
        assert response.dfmr["kept_visual_tokens"] == other["visual_tokens"]


def test_explain_names_the_threshold_of_every_token_count(server: Server) -> None:
    body = {"image_url": {"url": data_url(scene(9))}, "dfmr": {"factors": [1, 2, 3]}, "overlay": False}
    explanation = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=120).json()
    alternatives = explanation["alternatives"]
    assert alternatives[0] == {"tau": 0.0, "visual_tokens": FULL, "factor": 1}
    assert [a["visual_tokens"] for a in alternatives][-1] == 64
    for other in alternatives:
        response = ask(server, scene(9), factors=[1, 2, 3], tau=other["tau"])
        assert response.dfmr["images"][0]["factor"] == other["factor"]
