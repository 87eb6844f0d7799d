"""Checks that a prompt can be laid out around a clip's features before a model reads them.

A feature file may come from anybody, and its seal says only that it is as it was written: its
tensors may be of another number, width or type than its model's, and its texts others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cogcache.errors import CogcacheError, FeaturesError
from cogcache.models.family import ClipTensors, Family, PromptRow

if TYPE_CHECKING:
    from torch import Tensor

_QUESTION: Final = "What is it?"
_HINT: Final = "run `cogcache verify --fix`, then `cogcache extract` again: it makes the clip anew"
_CONTEXTS: Final = 4
"""Times that a clip may fill the positions of its model: even once leaves no room for a caption.

Positions of some models have axes, so that a clip has more rows than positions.
"""
_ODD: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What comes of texts and tensors of another form than stage one writes."""


def features_of(tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> ClipTensors:
    """Return what a feature file holds as a family reads it.

    Raises:
        FeaturesError: it has no texts.
    """
    texts = attributes.get("texts")
    if not isinstance(texts, Mapping):
        raise FeaturesError("features_corrupt", "its attribute `texts` is no list of texts", _HINT)
    return ClipTensors(tensors, {name: str(text) for name, text in texts.items()}, attributes)


def check_features(family: Family, features: ClipTensors, layout: str) -> None:
    """Refuse a clip's features where they do not fit the slots of a prompt.

    Args:
        family: as it caches features.
        features: of one clip; of those that stand in slots the shapes and types count.
        layout: of prompts.

    Raises:
        FeaturesError: they do not fit.
    """
    try:
        fault = _fault(family, features, layout)
    except _ODD as error:
        told = error.problem if isinstance(error, CogcacheError) else f"{error}"
        fault = f"no prompt can be laid out around them ({told or type(error).__name__})"
    if fault:
        problem = f"its features are not those of a {family.name} model: {fault}"
        raise FeaturesError("features_corrupt", problem, _HINT)


def _fault(family: Family, features: ClipTensors, layout: str) -> str:
    levels, width = family.feature_levels(features), family.feature_width()
    if not levels or not levels[0]:
        return "there are none"
    for name in (name for level in levels for name in level):
        if fault := _odd_tensor(features.tensors[name], width):
            return f"{name} {fault}"
    rows = [sum(family.num_slots(features.tensors[name]) for name in level) for level in levels]
    context = family.text_config.get("max_position_embeddings")
    if context and rows[0] > _CONTEXTS * context:
        return f"{rows[0]:,} rows, and the model knows {context:,} positions"
    return _odd_slots(family, family.row(features, _QUESTION, layout), rows)


def _odd_tensor(tensor: Tensor, width: int) -> str:
    if not tensor.is_floating_point():
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.ndim < 2 or tensor.shape[-1] != width:  # rows and numbers
        return f"is of shape {[*tensor.shape]}, and rows have {width} numbers"
    return "is empty" if not tensor.numel() else ""


def _odd_slots(family: Family, row: PromptRow, rows: list[int]) -> str:
    """Compare the slots of a prompt with the rows of each level; positions must exist, too."""
    # Some processors put marks around the slots that count as such, and no row stands in a mark.
    ids = row.sequences["input_ids"][family.slots(row)]
    counts = {len(ids), *Counter(ids.tolist()).values()}
    if not counts.issuperset(rows):
        return f"{max(rows)} rows for the {len(ids)} slots of a prompt"
    standing = {name for level in family.feature_levels(row.features) for name in level}
    beside = [each for name, each in row.features.tensors.items() if name not in standing]
    if not any(tensor.is_meta for tensor in beside):
        family.positions(row)
    return ""
