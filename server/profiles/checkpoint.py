"""What a checkpoint says of itself: how far its pictures may be pooled."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from server.profiles.format import Profile, read_profile

logger = logging.getLogger(f"vllm.{__name__}")

PROFILE_FILE = "dfmr_profile.json"
"""A checkpoint that was trained with pooled maps says so, and how far to go, in this file beside its config.json."""


def checkpoint_profile(model: str, revision: str | None = None) -> Profile | None:
    """The ``dfmr_profile.json`` of a checkpoint, if it has one.

    Args:
        model: a local folder or a hub name.
        revision: branch, tag or commit at the hub; None for its main branch.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(model) / PROFILE_FILE if Path(model).is_dir() else _from_hub(model, revision)
    return read_profile(path) if path is not None and path.is_file() else None


def _from_hub(model: str, revision: str | None) -> Path | None:
    """The file in the hub's local cache, fetched if need be; None where there is none, or nothing can be learned."""
    try:
        return Path(hf_hub_download(model, PROFILE_FILE, revision=revision))
    except LocalEntryNotFoundError:
        logger.warning("dfmr: the hub can't be asked for %s of %s, and no copy of it is kept here", PROFILE_FILE, model)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        pass  # There is no such file, or no such model, of which vLLM tells more.
    return None
