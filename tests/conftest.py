"""What holds for all tests."""

import os

from hypothesis import settings

# Read when huggingface_hub is first imported: no test asks the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# Machines are shared: how long one example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
