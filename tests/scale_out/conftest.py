"""Two engines each: too much for every run. `make test-scale-out` asks for them."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "DFMR_SCALE_OUT" not in os.environ:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="two engines: NOT CHECKED here, but by make test-scale-out"))
