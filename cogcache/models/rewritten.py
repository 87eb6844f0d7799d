"""Checkpoints with a new language half: the vision half's shards are linked to the original's.

Features and their keys stay valid: the vision half has the digest that it has in the original, even
where the config says something else of the decoder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from cogcache.errors import CheckpointError, ConfigError
from cogcache.models.checkpoints.checkpoint import (
    INDEX,
    Checkpoint,
    RewrittenCheckpoint,
    SplitCheckpoint,
)
from cogcache.models.checkpoints.checkpoint import REWRITTEN as MANIFEST
from cogcache.models.checkpoints.headers import read_header, read_tensor
from cogcache.models.checkpoints.tensor_files import (
    TensorFiles,
    copy_tensors,
    sha256_of,
    sync_file,
)
from cogcache.models.halves.load import WholeModel
from cogcache.models.halves.partition import on_meta
from cogcache.models.halves.sizes import block_of, block_paths
from cogcache.system import make_folder, sync_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Named = tuple[str, "Tensor"]
SUFFIX: Final = ".safetensors"
_DIGITS: Final = re.compile(r"^\d+$")


def write_with_language(
    whole: WholeModel,
    out: Path,
    language: Iterable[Named],
    config: Mapping[str, Any] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint with another language half; `config.json` comes last.

    Args:
        whole: the original, at the usual cache point.
        out: the folder; made if need be.
        language: tensors of the new half, under the names that they have in checkpoints.
        config: content of its config.json; None: that of the original.
        made_from: what it was made from, for its manifest.

    Raises:
        CheckpointError: the original is a split one, or the disk gives back other bytes.
    """
    original = whole.checkpoint
    if isinstance(original, SplitCheckpoint):
        raise CheckpointError(f"{original.model} is split", "give the original")
    parts = whole.partition
    kept = {name: original.weight_map[name] for name in (*parts.vision, *parts.shared)}
    original.fetch(sorted(set(kept.values())))
    make_folder(out.absolute())
    for path in original.small_files(legal=True):
        if path.name not in ("config.json", MANIFEST, "README.md"):
            shutil.copyfile(path, out / path.name)
    shards = sorted(set(kept.values()))
    brought = {shard: _brought(original, shard, kept.keys(), out) for shard in shards}
    with tqdm(unit="B", unit_scale=True, desc="write", disable=None) as bar:
        files = TensorFiles(out, bar, {}).write("language", language)
    weight_map = {name: brought[shard][0] for name, shard in kept.items()}
    weight_map |= {name: file for file, names in files for name in names}
    total = sum((out / file).stat().st_size for file in set(weight_map.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / INDEX, index)
    content = dict(config or original.config)
    manifest = {
        "format": 1,
        "model": original.model,
        "vision": sorted(kept),
        "vision_config": original.config_of(list(kept)),
        "copied": {file: digests for file, digests in brought.values() if digests},
        "made_from": dict(made_from or {}),
    }
    _write_json(out / MANIFEST, manifest)
    _write_json(out / "config.json", content)
    sync_folder(out)


def _brought(
    original: Checkpoint, shard: str, kept: Collection[str], out: Path
) -> tuple[str, Mapping[str, str] | None]:
    """Bring the vision half's tensors of a shard into a folder: a link, or a file with them alone.

    A shard that holds weights of the decoder too is not linked: who loads the whole model reads
    all of a shard, and would take the original's weights for those of the new decoder.

    Returns:
        The file's name; and of a copy its digest and that of the shard, which features go by.
    """
    source = (original.folder / shard).resolve()
    held = read_header(source).keys()
    if held <= set(kept):
        _link(source, out / shard)
        copied = original.copied if isinstance(original, RewrittenCheckpoint) else {}
        return shard, copied.get(shard)
    file = shard.removesuffix(SUFFIX) + ".vision" + SUFFIX
    digest = copy_tensors(source, held & set(kept), out / file)
    return file, {"sha256": digest, "from_sha256": original.shard_digest(shard, sha256_of)}


def _link(source: Path, target: Path) -> None:
    """Link a file; copy it where its file system does not let it be linked."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    sync_file(path)


def named_as_stored(whole: WholeModel, model: PreTrainedModel) -> list[Named]:
    """Return a language half's tensors under the names that they have in checkpoints.

    Args:
        whole: the model that the half is of; its config says what there is.
        model: the half, not quantised.
    """
    tied = model.all_tied_weights_keys
    known = whole.meta.state_dict()
    state = {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if name in known and name not in tied
    }
    return as_stored(whole.meta, state)


def as_stored(meta: PreTrainedModel, state: Mapping[str, Tensor]) -> list[Named]:
    """Return tensors under the names that they have in checkpoints.

    Args:
        meta: the whole model on meta.
        state: by their names in memory.
    """
    from transformers.core_model_loading import revert_weight_conversion

    named: dict[str, Tensor] = revert_weight_conversion(meta, dict(state))
    return [(name, tensor.clone()) for name, tensor in sorted(named.items())]


def with_decoder(
    teacher: Checkpoint, decoder: PreTrainedModel, out: Path, tokenizer_of: Path, seed: int
) -> None:
    """Write a model that reads a teacher's pooled features with another decoder, not trained yet.

    Args:
        teacher: a CogVLM2-Video.
        decoder: a Llama.
        out: folder of the checkpoint.
        tokenizer_of: folder with the decoder's tokenizer.
        seed: of the projector's first weights.

    Raises:
        ConfigError: the teacher is of another family, which has no pooled features.
    """
    from cogcache.models.cogvlm2 import other_decoder

    whole = WholeModel.of(teacher, cache_point="pooled")
    if not getattr(whole.meta, "behind_cache_point", ()):
        problem = f"{teacher.model} has no features from before its projector"
        raise ConfigError(problem, "give --layers: only CogVLM2-Video takes another decoder")
    config = other_decoder.config_with(teacher.config, decoder)
    if other_decoder.same_tokenizer(tokenizer_of, teacher.folder):
        # Captions must end as the teacher's do, or its thoughts would be about other tokens.
        config |= {name: teacher.config[name] for name in other_decoder.ENDS}
    known = {name: each for name, each in config.items() if name not in ("architectures",)}
    meta = on_meta(whole.cls, whole.cls.config_class(**known, cache_point="pooled"))
    state = other_decoder.state_with(meta, decoder, seed)
    made_from = {"decoder": decoder.config._name_or_path}
    write_with_language(whole, out, as_stored(meta, state), config, made_from)
    for name in other_decoder.TOKENIZER_FILES:
        if (tokenizer_of / name).is_file():
            shutil.copyfile(tokenizer_of / name, out / name)


# ---- fewer layers -------------------------------------------------------------------------------


def layers_of(text: str, num_layers: int) -> list[int]:
    """Return which decoder layers a student keeps.

    Args:
        text: how many, evenly spread from the first to the last; or a list such as `0,2,5`.
        num_layers: of the teacher.

    Raises:
        ConfigError: there are not so many, or they are not in order.

    Example:
        >>> layers_of("3", 9), layers_of("0,1,8", 9)
        ([0, 4, 8], [0, 1, 8])
    """
    numbers = [part.strip() for part in text.split(",")]
    if not all(_DIGITS.match(number) for number in numbers):
        problem = f"--layers {text!r} is neither a number of layers nor a list of them"
        raise ConfigError(problem, "write it as 16, or as 0,2,4")
    kept = [int(number) for number in numbers]
    if len(kept) == 1:
        count = kept[0]
        kept = [round(index * (num_layers - 1) / max(count - 1, 1)) for index in range(count)]
    if not kept or sorted({*kept}) != kept or kept[-1] >= num_layers:
        problem = f"--layers {text!r} does not fit a decoder of {num_layers} layers"
        raise ConfigError(problem, f"give 1 to {num_layers}, or numbers below that in order")
    return kept


def num_layers_of(whole: WholeModel) -> int:
    """Return how many decoder layers a model has."""
    return len(_blocks(whole))


def _blocks(whole: WholeModel) -> list[str]:
    """Return the paths of the decoder's layers, in order."""
    modules = whole.partition.modules
    return block_paths(
        (name, parameter)
        for name, parameter in whole.meta.named_parameters()
        if modules.half_of(name) != "vision"
    )


def with_layers(whole: WholeModel, kept: Sequence[int]) -> tuple[dict[str, Any], Iterator[Named]]:
    """Return the config and the language tensors of a model with some of its layers.

    Layers get new numbers, in the names of tensors and in all that the config says by layer.
    """
    return _config_with(whole, kept), _tensors_with(whole, kept)


def _config_with(whole: WholeModel, kept: Sequence[int]) -> dict[str, Any]:
    config: dict[str, Any] = deepcopy(whole.checkpoint.config)
    before = num_layers_of(whole)
    text = whole.config.get_text_config(decoder=True)
    for part in _text_parts(config):
        for name, value in list(part.items()):
            if name in ("num_hidden_layers", "n_layers") and value == before:
                part[name] = len(kept)
            elif isinstance(value, list) and len(value) == before and name != "architectures":
                part[name] = [value[index] for index in kept]
            elif name in _INDICES and isinstance(value, list):
                part[name] = [new for new, old in enumerate(kept) if old in value]
            elif name in _COUNTS and isinstance(value, int):
                part[name] = sum(index < value for index in kept)
    if all("num_hidden_layers" not in part for part in _text_parts(config)):
        problem = f"{whole.checkpoint.model} does not say in config.json how many layers it has"
        raise ConfigError(problem, f"its decoder has {text.num_hidden_layers}")
    return config


_INDICES: Final = ("mlp_only_layers", "full_attn_idxs")
"""Settings that list layers by number."""
_COUNTS: Final = ("first_k_dense_replace", "max_window_layers")
"""Settings that say how many of the first layers are of a kind."""


def _text_parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a config that may speak of the decoder."""
    inner = [config[name] for name in ("text_config", "llm_config") if name in config]
    thinker = config.get("thinker_config")
    nested = _text_parts(thinker) if isinstance(thinker, dict) else []
    return [*inner, *nested] or [config]


def _tensors_with(whole: WholeModel, kept: Sequence[int]) -> Iterator[Named]:
    checkpoint, parts = whole.checkpoint, whole.partition
    blocks = _blocks(whole)
    numbers = {blocks[old]: new for new, old in enumerate(kept)}
    for name in parts.language:
        block = block_of(parts.targets[name])
        if block in blocks and block not in numbers:
            continue
        path = checkpoint.folder / checkpoint.weight_map[name]
        tensor = read_tensor(path, name)
        if block in numbers:
            yield _renumbered(name, block, numbers[block]), tensor
        elif "per_layer" in parts.targets[name]:
            yield name, _of_layers(tensor, kept, len(blocks), whole.config)
        else:
            yield name, tensor


def _of_layers(tensor: Tensor, kept: Sequence[int], before: int, config: Any) -> Tensor:
    """Return what a tensor holds for some layers, of one that has a part for each."""
    width = getattr(config.get_text_config(decoder=True), "hidden_size_per_layer_input", 0)
    for axis, size in enumerate(tensor.shape):
        if size == before * width:
            parts = tensor.tensor_split(before, dim=axis)
            return _joined(parts, kept, axis)
    return tensor


def _joined(parts: Sequence[Tensor], kept: Sequence[int], axis: int) -> Tensor:
    import torch

    return torch.cat([parts[index] for index in kept], dim=axis)


def _renumbered(name: str, block: str, number: int) -> str:
    """Return a checkpoint's name of a tensor with its layer's number replaced."""
    before = block.rpartition(".")[2]
    found, count = re.subn(rf"(?<=\.){before}(?=\.)", str(number), name, count=1)
    if not count:
        raise CheckpointError(
            f"{name} does not say that it is of layer {before}", "report the model"
        )
    return found
