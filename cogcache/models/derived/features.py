"""From what a feature call returns to named tensors, and back to what `generate` takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from cogcache.errors import UnknownFamilyError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Modality = Literal["video", "image"]
Nested = Any
"""A tensor, or a list of such: what `pooler_output` and `deepstack_features` are made of."""

FEATURES = "features"
DEEPSTACK = "deepstack"
EXTRA = "extra."
PIXELS = "pixel"
"""Part of the name of every input that only the vision half reads."""


def feature_call(
    model: PreTrainedModel, inputs: Mapping[str, Tensor]
) -> tuple[Modality, dict[str, Tensor]]:
    """Say under which key `generate` would file the features, and what it would make them of.

    Raises:
        UnknownFamilyError: the model makes no features of these inputs, or needs more.
    """
    name = f"{type(model).__name__} ({version_text()})"
    hint = "`cogcache models` lists what is supported"
    modality: Modality
    for modality in ("video", "image"):
        function = getattr(model.base_model, f"get_{modality}_features", None)
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        given = {each.name: inputs[each.name] for each in parameters if each.name in inputs}
        if not any(PIXELS in key for key in given):
            continue
        needed = [
            each.name
            for each in parameters
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        if absent := [each for each in needed if each not in given]:
            problem = f"{name}: get_{modality}_features needs {', '.join(absent)}"
            raise UnknownFamilyError(f"{problem}, which its processor does not give", hint)
        return modality, given
    problem = f"{name} has no feature call for any of {', '.join(sorted(inputs))}"
    raise UnknownFamilyError(problem, hint)


def version_text() -> str:
    """Return which transformers is installed, for messages."""
    import transformers

    return f"transformers {transformers.__version__}"


def named(prefix: str, value: Nested) -> dict[str, Tensor]:
    """Name the tensors of a nested list: `prefix`, `prefix.0`, `prefix.1.0`."""
    if not isinstance(value, (list, tuple)):
        # A part of a split tensor would take the whole of it along to the other process.
        return {prefix: value.detach().clone()}
    parts = [named(f"{prefix}.{index}", each) for index, each in enumerate(value)]
    return {name: tensor for part in parts for name, tensor in part.items()}


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> Nested | None:
    """Undo `named`; None where nothing bears the prefix."""
    if prefix in tensors:
        return tensors[prefix]
    start = f"{prefix}."
    indices = {
        int(name[len(start) :].partition(".")[0]) for name in tensors if name.startswith(start)
    }
    return [nested(f"{prefix}.{index}", tensors) for index in sorted(indices)] or None


def levels_of(names: Iterable[str]) -> list[list[str]]:
    """Name what stands in the slots: the features, then each deep-stack level, in order.

    Example:
        >>> levels_of(["features.10", "features.9", "extra.grid", "deepstack.0"])
        [['features.9', 'features.10'], ['deepstack.0']]
    """
    found: dict[str, list[tuple[list[int], str]]] = {}
    for name in names:
        prefix, _, rest = name.partition(".")
        place = [int(each) for each in rest.split(".")] if rest.replace(".", "").isdigit() else []
        if prefix == FEATURES:
            found.setdefault("", []).append((place, name))
        elif prefix == DEEPSTACK:
            found.setdefault(f"{place[0]:03}", []).append((place, name))
    return [[name for _, name in sorted(found[level])] for level in sorted(found)]


def num_rows(value: Nested) -> int:
    """Count feature rows, one a slot in the prompt."""
    if isinstance(value, (list, tuple)):
        return sum(num_rows(each) for each in value)
    return int(value.shape[:-1].numel())


def joined(clips: Sequence[Nested]) -> Nested:
    """Join the features of several clips as if one feature call had made them."""
    import torch

    if isinstance(clips[0], list):
        return [each for clip in clips for each in clip]
    if len({clip.shape[1:] for clip in clips}) == 1:
        return torch.cat(list(clips))
    flat = [clip.reshape(-1, clip.shape[-1]) for clip in clips]
    return torch.cat(flat)[None]


def encoder_output(clips: Sequence[Mapping[str, Tensor]], device: Any, dtype: Any) -> Any:
    """Return several clips' features as what a feature call returns, made anew.

    Args:
        clips: named tensors of each clip.
        device: of the language half.
        dtype: of the language half; not every class casts by itself.
    """

    def moved(value: Nested) -> Nested:
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.to(device, dtype)

    pooled = [moved(nested(FEATURES, clip)) for clip in clips]
    output = SimpleNamespace(pooler_output=joined(pooled))
    levels = [nested(DEEPSTACK, clip) for clip in clips]
    if all(level is not None for level in levels):
        output.deepstack_features = [
            joined([moved(each) for each in level]) for level in zip(*levels, strict=True)
        ]
    return output


def extras(clips: Sequence[Mapping[str, Tensor]], device: Any) -> dict[str, Tensor]:
    """Return what the language half wants to know beside features, over all clips."""
    import torch

    names = [name for name in clips[0] if name.startswith(EXTRA)]
    return {
        name.removeprefix(EXTRA): torch.cat([clip[name] for clip in clips]).to(device)
        for name in names
    }
