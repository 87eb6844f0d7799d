"""Turns texts into vectors with a sentence-transformers model; an extra of the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cogcache.catalog.catalog import Catalog
from cogcache.errors import CheckpointError, ConfigError
from cogcache.keys import digest
from cogcache.system import extra_hint

_BATCH: Final = 64
_HINT: Final = extra_hint("semantic")


class Embedder:
    """A model of texts, loaded when it is first asked.

    Args:
        model: a folder, or a hub id.

    Raises:
        CheckpointError: there is no such model, or it has no weights in safetensors.
        ConfigError: the extra is not installed.
    """

    def __init__(self, model: str) -> None:
        if find_spec("sentence_transformers") is None:  # before anything is downloaded for it
            raise ConfigError("search by meaning needs sentence-transformers", _HINT)
        self.folder = Path(model) if Path(model).is_dir() else _download(model)
        self._weights = sorted(self.folder.rglob("*.safetensors"))
        if not self._weights or not (self.folder / "modules.json").is_file():
            problem = f"{model} is no sentence-transformers model with weights in safetensors"
            raise CheckpointError(
                problem, "take another one, such as sentence-transformers/all-MiniLM-L6-v2"
            )
        self._model: Any = None

    def digest(self, catalog: Catalog) -> str:
        """Return the digest of all of the model's files that its vectors depend on."""
        small = [path for path in self.folder.rglob("*.json") if path.is_file()]
        files = sorted([*self._weights, *small, *self.folder.rglob("vocab.txt")])
        names = {
            str(path.relative_to(self.folder)): catalog.files.digest_of(path) for path in files
        }
        return digest(names)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a vector of length 1 for each text, float32 [texts, dimensions]."""
        if self._model is None:
            self._model = self._load()
        vectors = self._model.encode(
            list(texts),
            batch_size=_BATCH,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise ConfigError("search by meaning needs sentence-transformers", _HINT) from error
        # A bar for each load says nothing to who searches; the command shows its own.
        transformers_logging.disable_progress_bar()
        options = {"model_kwargs": {"use_safetensors": True}, "local_files_only": True}
        return SentenceTransformer(str(self.folder), **options)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        # The same in other formats would be downloaded for nothing.
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=["o*nx/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = f"there is no folder {model}, and it cannot be downloaded: {error}"
        raise CheckpointError(problem, "name a folder, or a model on the hub") from error
