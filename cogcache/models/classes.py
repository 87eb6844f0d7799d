"""The transformers class and configuration of a checkpoint."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from cogcache.errors import CheckpointError, UnknownFamilyError
from cogcache.models.checkpoints.bounds import blamed_on
from cogcache.models.checkpoints.checkpoint import Checkpoint, stored_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_ARCHITECTURES = {
    "CogVLMVideoForCausalLM": "CogVLM2VideoForConditionalGeneration",
    "CogVLM2VideoForConditionalGeneration": "CogVLM2VideoForConditionalGeneration",
}
"""Architectures that transformers does not know, as published and as saved again, and our class."""


def model_class(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    """Return the transformers class, or ours, for a checkpoint's architecture.

    Raises:
        UnknownFamilyError: nobody knows the architecture, or it takes no cached features.
    """
    import transformers

    from cogcache.models import cogvlm2

    architecture = checkpoint.architecture
    if architecture in OWN_ARCHITECTURES:
        return getattr(cogvlm2, OWN_ARCHITECTURES[architecture])
    cls = getattr(transformers, architecture, None)
    hint = "`cogcache models` lists what is supported"
    if not inspect.isclass(cls):
        problem = f"{checkpoint.model}: the architecture {architecture} is not known to "
        raise UnknownFamilyError(f"{problem}transformers {transformers.__version__}", hint)
    if "mm_encoder_outputs" not in inspect.signature(getattr(cls, "forward", cls)).parameters:
        problem = f"{checkpoint.model}: {architecture} takes no features from outside"
        raise UnknownFamilyError(f"{problem} (its forward has no mm_encoder_outputs)", hint)
    return cls


def load_config(checkpoint: Checkpoint, cls: type[PreTrainedModel], **overrides: Any) -> Any:
    """Read a checkpoint's config as `cls` wants it, with `overrides` set on it.

    Raises:
        CheckpointError: it lacks the vision part, or transformers refuses it.
    """
    from huggingface_hub.errors import StrictDataclassError

    hint = "this must be the whole model's config.json; fetch it anew"
    parts = ("vision_config", "vit_config", "thinker_config")
    if not any(key in checkpoint.config for key in parts):
        path = checkpoint.folder / "config.json"
        raise CheckpointError(f"{path} describes no vision part (vision_config)", hint)
    checkpoint.check_layers()
    with blamed_on(checkpoint.folder):
        try:
            config = cls.config_class.from_pretrained(checkpoint.folder)
        except (StrictDataclassError, TypeError, ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: {error}", hint) from error
    if stored_method(checkpoint) is not None:
        del config.quantization_config  # what is loaded here is not quantised, or refused
    for key, value in overrides.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config
