"""Files of a hub id."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cogcache.errors import CheckpointError


def fetch_files(model: str, revision: str | None, patterns: Collection[str]) -> Path:
    """Return the folder of a hub id's snapshot, with the files that match `patterns` in it.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = "give a folder, or a hub id such as THUDM/cogvlm2-llama3-caption, and check the network"
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model} cannot be fetched: {first_line}", hint) from error
    return Path(folder)
