"""Whether vLLM's environment gives the tokens that transformers gives here, shown with `tiny`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cogcache.errors import ClipError, CogcacheError, FeaturesError
from cogcache.generation import Decoder, Request, View, VllmDecoder, check_backend, opening_of
from cogcache.models import ClipTensors, Family, WholeModel, load_half, open_family
from cogcache.settings import Generation, Settings, load_settings
from cogcache.store import FeatureStore
from cogcache.system import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY: Final = "0" * 64
NUM_FRAMES: Final = 6
GREEDY: Final = Generation(max_new_tokens=16)


@dataclass(frozen=True)
class _Files:
    """The one feature file of the check."""

    store: FeatureStore

    def path_of(self, key: str) -> Path:
        """Return where it lies."""
        path = self.store.path_of(key)
        assert isinstance(path, Path)
        return path

    def refused(self, key: str, reason: str, problem: str) -> ClipError:
        """Return why the worker does not take it."""
        return FeaturesError("features_corrupt", problem)


def check_environment(python: Path) -> str:
    """Caption the same features through vLLM and here, in float32; return what was found.

    Args:
        python: of the environment that vLLM is installed in.

    Raises:
        CogcacheError: the environment is not fit, or gives other tokens.
    """
    given = {"model": "tiny", "device": "cpu", "quantization": "none", "compute_dtype": "float32"}
    given |= {"rotary_dtype": "float32", "backend": "vllm", "backend_python": str(python)}
    settings = load_settings(None, {**given, "kv_cache_gib": 0.5})
    family = open_family(settings)
    check_backend(settings, family)
    with scratch_folder() as folder:
        (folder / "view").mkdir()
        store = FeatureStore.create_or_open(folder / "cache")
        request = _request(family, store)
        decoder = _decoder(settings, family, store, folder / "view")
        try:
            decoder.open(request.row.length + GREEDY.max_new_tokens)
            versions = ", ".join(f"{k} {v}" for k, v in decoder.facts["versions"].items())
            [found] = decoder.run([[request]])
        finally:
            decoder.close()
    expected = _expected(settings, family, request)
    if list(found.tokens) != list(expected):
        problem = f"{versions}: `tiny` gave {found.tokens}, and transformers {list(expected)}"
        raise CogcacheError(problem, "do not caption with it; report this with the versions")
    return f"{versions}: {len(expected)} tokens of `tiny` equal those of transformers"


def _request(family: Family, store: FeatureStore) -> Request:
    import torch

    shape = (
        family.expected(
            ClipTensors({"pixel_values_videos": torch.empty(NUM_FRAMES)}), torch.float32
        )
        .tensors["features"]
        .shape
    )
    random = torch.Generator().manual_seed(0)
    store.write(KEY, {"features": 0.5 * torch.randn(shape, generator=random)}, {"texts": {}})
    features = ClipTensors(store.read(KEY).tensors)
    return Request(family.row(features, "What is it?", "chat"), KEY, 0, GREEDY)


def _decoder(settings: Settings, family: Family, store: FeatureStore, folder: Path) -> VllmDecoder:
    view = View.of(family, settings.language)
    view.write(folder)
    context = view.config.get("max_position_embeddings")
    return VllmDecoder(opening_of(settings, folder), family, _Files(store), context)


def _expected(settings: Settings, family: Family, request: Request) -> Sequence[int]:
    import torch

    whole = WholeModel.of(family.checkpoint, **family.config_overrides(settings.language))
    half = load_half(whole, "language", dtype=torch.float32)
    [finished] = Decoder(half.model, family, 1).run([[request]])
    return finished.tokens
