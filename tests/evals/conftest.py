from collections.abc import Iterator

import pytest
from fake_endpoint import FakeEndpoint, picture

from evals.items import Item


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    endpoint = FakeEndpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def items() -> list[Item]:
    """Simple pictures that may be pooled, rich ones that may not, and simple-looking ones that may not either."""
    made = []
    for number in range(30):
        kind = ("simple", "rich", "blind spot")[number % 3]
        score, largest = {"simple": (2 * number % 20, 4), "rich": (90, 1), "blind spot": (15 + number % 7, 2)}[kind]
        pictures = [picture(score, number, largest)] * (2 if number % 10 == 9 else 1)
        made.append(
            Item(
                id=str(number), pictures=tuple(pictures), question=f"Which {number}?", answers=(str(number),), kind=kind
            )
        )
    return made
