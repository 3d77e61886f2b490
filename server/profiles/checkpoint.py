"""What a checkpoint says of itself: how far its pictures may be pooled."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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
    """The file in the hub's local cache, fetched if nothing is known of it; None where there is none.

    What the cache knows is of the commit that vLLM serves: by the time that it counts, the cache has that one's config.
    """
    try:
        if (known := try_to_load_from_cache(model, PROFILE_FILE, revision=revision)) is not None:
            return Path(known) if isinstance(known, str) else None
        return Path(hf_hub_download(model, PROFILE_FILE, revision=revision))
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        return None  # If it is the model that there is not, vLLM will say so.
    except Exception as error:  # No profile is worth the start of a server: the network, proxies, a full disk.
        logger.warning("dfmr: it could not be found out whether %s has a %s: %s", model, PROFILE_FILE, error)
        return None
