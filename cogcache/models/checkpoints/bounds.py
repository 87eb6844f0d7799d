"""Bounds on what a checkpoint's small files may claim, checked before anything is built.

A checkpoint may come from anybody, and a model on meta takes memory and time for each of its
layers. So what its small files say is bounded: by itself, and by the tensors that there are.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cogcache.errors import CheckpointError, CogcacheError
from cogcache.system import machine_error

MAX_FILE_BYTES: Final = 2**26
"""Of one small file; the largest known tokenizers have 40 MB."""
MAX_JSON_BYTES: Final = 2**25
"""Of one that is read as JSON, tokenizers apart: lists of nothing take 20 times as much memory. An
index of 140,000 tensors has 20 MB."""
MAX_DEPTH: Final = 32
MAX_LAYERS: Final = 1024
"""The deepest known models have some 130 layers."""
MAX_EXPERTS: Final = 4096
MAX_SIDE: Final = 2**24
"""Of a matrix, and rows of a vocabulary."""
MAX_PICTURE: Final = 16_384
"""Pixels a side of what a vision half sees."""
MAX_PIXELS: Final = 2**26
"""Pixels that a processor makes of a frame at least, or takes of one at most times 64."""
_MAX_NUMBER: Final = 2**63
_SPARE_LAYERS: Final = 64
_HINT: Final = "fetch it anew, or name another model"
_LAYERS: Final = re.compile(r"(num_)?(\w+_)?layers|n_layers?|depth|\w*_depth|num_blocks")
_BUILT: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "num_blocks")
"""Names of how many layers a class builds; others, such as max_window_layers, only choose some."""
_EXPERTS: Final = re.compile(r"(num|n)_(\w+_)?experts|num_labels|num_stages")
_SIDES: Final = re.compile(
    r"(\w+_)?(hidden_size|intermediate_size|vocab_size|embed_dim|head_dim|num_positions|hidden_dim)"
)
_HEADS: Final = re.compile(r"(num|n)_(\w+_)?heads?|num_multi_query_heads")
_PICTURES: Final = re.compile(r"image_size|patch_size|spatial_merge_size|temporal_patch_size")
_PARTS: Final = re.compile(r"\w*_config")
_NUMBERED: Final = re.compile(r"(.+?)\.(\d+)\.")


@contextmanager
def blamed_on(checkpoint: Path) -> Iterator[None]:
    """Turn what libraries raise at an odd checkpoint into an error that names it.

    They raise errors of any kind at files that are not as they should be: assertions, divisions by
    zero, missing keys, and plain `Exception`. What the machine is the reason of passes, and so do
    errors of ours.

    Raises:
        CheckpointError: the `with` block ended with such an error.
    """
    try:
        yield
    except (CogcacheError, MemoryError):
        raise
    except Exception as error:
        if machine_error(error) is not None:
            raise
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        problem = f"{checkpoint} is not a checkpoint that can be used: {said[:500]}"
        raise CheckpointError(problem, _HINT) from error


def check_files(folder: Path, files: Iterable[Path]) -> None:
    """Refuse small files that are pipes or huge: reading them would not end or fill the memory.

    Raises:
        CheckpointError: one is.
    """
    for path in files:
        try:
            about = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}", _HINT) from error
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path} is no file", f"take it out of {folder}")
        if about.st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {about.st_size:,} bytes", _HINT)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, is none, or is too large or nested too deep.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise CheckpointError(f"{path} has {size:,} bytes", _HINT)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "fetch it anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", "fetch it anew")
    return content


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config that no model can be of.

    Args:
        config: the content of config.json.
        path: of the file, for messages.

    Raises:
        CheckpointError: a part of it is no mapping, or a number is out of bounds.
    """
    level: list[tuple[str, Any]] = [("", config)]
    for _ in range(MAX_DEPTH):
        for name, value in level:
            _check_value(name, value, path)
        level = [pair for _, value in level for pair in _inner(value)]
        if not level:
            return
    raise CheckpointError(f"{path} is nested more than {MAX_DEPTH} deep", _HINT)


def _inner(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(name), each) for name, each in value.items()]
    return [("", each) for each in value] if isinstance(value, list) else []


def _check_value(name: str, value: Any, path: Path) -> None:
    if isinstance(value, bool):
        return
    if _PARTS.fullmatch(name) and not isinstance(value, dict | None):
        raise CheckpointError(f"{path}: {name} is no mapping", _HINT)
    if name in ("model_type", "torch_dtype", "dtype") and not isinstance(value, str | None):
        raise CheckpointError(f"{path}: {name} is no text", _HINT)
    if not isinstance(value, int | float):
        return
    least, most = _bounds(name)
    if not least <= value <= most:  # NaN is in no bounds
        shown = str(value) if abs(value) < _MAX_NUMBER else "a number without bounds"
        raise CheckpointError(f"{path}: {name} is {shown[:40]}; {least} to {most} are known", _HINT)


def _bounds(name: str) -> tuple[int, int]:
    for names, most in (
        (_LAYERS, MAX_LAYERS),
        (_EXPERTS, MAX_EXPERTS),
    ):
        if names.fullmatch(name):
            return 0, most
    for names, most in ((_SIDES, MAX_SIDE), (_HEADS, MAX_SIDE), (_PICTURES, MAX_PICTURE)):
        if names.fullmatch(name):
            return 1, most
    return -_MAX_NUMBER, _MAX_NUMBER


def check_layers(config: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Hold how many layers a config claims against those that there are tensors of.

    Args:
        config: the content of config.json.
        names: of the checkpoint's tensors.
        path: of the config, for messages.

    Raises:
        CheckpointError: it claims many more.
    """
    stacks: dict[str, int] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            stacks[match[1]] = max(stacks.get(match[1], 0), min(int(match[2][:6]), MAX_LAYERS) + 1)
    most = 2 * max(stacks.values(), default=0) + _SPARE_LAYERS
    level = [("", dict(config))]
    for _ in range(MAX_DEPTH):
        for name, value in level:
            if name in _BUILT and isinstance(value, int | float) and value > most:
                problem = f"{path}: {name} is {value}, and there are tensors of {most} at most"
                raise CheckpointError(problem, "its config.json may be of another model")
        level = [pair for _, value in level for pair in _inner(value)]


def check_processor(content: Any, path: Path, name: str = "") -> None:
    """Refuse sizes of pictures that would fill the memory.

    Args:
        content: of a processor's config.
        path: of the file, for messages.
        name: of the part that `content` is.

    Raises:
        CheckpointError: a number is out of bounds.
    """
    for key, value in _inner(content):
        if isinstance(value, dict | list):
            check_processor(value, path, key)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = _most_of_processor(name, key or name)
            if not -most <= value <= most or _is_zero_patch(key, value):
                raise CheckpointError(f"{path}: {key or name} is out of bounds", _HINT)


def _is_zero_patch(key: str, value: float) -> bool:
    return bool(_PICTURES.fullmatch(key)) and value < 1


def _most_of_processor(part: str, key: str) -> float:
    if key in ("min_pixels", "shortest_edge"):
        return MAX_PIXELS
    if key in ("height", "width", "num_frames", "max_frames") or _PICTURES.fullmatch(key):
        return MAX_PICTURE
    # A model_max_length of 1e30 is usual.
    return 64 * MAX_PIXELS if part == "size" or "pixels" in key or "edge" in key else math.inf


def check_shard_name(shard: object, path: Path) -> None:
    """Refuse a shard that does not lie in the checkpoint's folder.

    Raises:
        CheckpointError: it does not.
    """
    parts = PurePosixPath(shard).parts if isinstance(shard, str) else ()
    if not parts or ".." in parts or "\0" in str(shard) or str(shard).startswith("/"):
        raise CheckpointError(f"{path} names {str(shard)[:80]!r} as a shard", "fetch it anew")


def check_rewritten(manifest: Mapping[str, Any], path: Path) -> None:
    """See that the manifest of a checkpoint with a new language half says what one has to say.

    Raises:
        CheckpointError: a part of it is missing, or of another type.
    """
    vision, copied = manifest.get("vision"), manifest.get("copied", {})
    named = isinstance(vision, list) and all(isinstance(name, str) for name in vision)
    fits = named and isinstance(manifest.get("vision_config"), dict) and isinstance(copied, dict)
    if not fits or not all(map(_are_digests, copied.values())):
        problem = f"{path} does not say what a rewritten checkpoint says of itself"
        raise CheckpointError(problem, "copy the folder anew, or make it anew")


def _are_digests(value: Any) -> bool:
    names = ("sha256", "from_sha256")
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def check_model_name(model: str) -> None:
    """See that a name that is no folder may be an id on the hub.

    Raises:
        CheckpointError: it cannot be one; says what may be meant.
    """
    problem = f"there is no folder {model}, and a hub id is OWNER/NAME"
    hint = "give a folder, or a hub id such as THUDM/cogvlm2-llama3-caption"
    if Path(model).is_file():
        problem, hint = f"{model} is a file", "give the folder that it lies in"
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        problem, hint = (
            f"there is no folder {model}",
            "see how it is written; a hub id is OWNER/NAME",
        )
    elif "/" in model:
        return
    elif difflib.get_close_matches(model, ["tiny"], n=1):
        problem, hint = f"there is no model {model!r}", "did you mean tiny?"
    raise CheckpointError(problem, hint)


def check_ids(ids: Iterable[object], folder: Path) -> None:
    """Refuse token ids that are not whole numbers from 0 on.

    Raises:
        CheckpointError: one is none.
    """
    for each in ids:
        if type(each) is not int or not 0 <= each <= MAX_SIDE:
            problem = f"{folder / 'config.json'}: {str(each)[:40]} stands for a number from 0 on"
            raise CheckpointError(problem, _HINT)
