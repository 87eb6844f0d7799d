"""Loading a checkpoint's processor as its files were meant when the family was published."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cogcache.models.checkpoints.tokenizer_bounds import check_tokenizer
from cogcache.models.derived.conversation import read_json

VIDEO_FILE = "video_preprocessor_config.json"
NAMED = {
    "llava_next_video": ("LlavaNextVideoProcessor", "LlavaNextVideoVideoProcessor"),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeVideoProcessor"),
}
"""Processors whose class is not read from files: that of the whole, and of its video processor.

LLaVA-NeXT-Video's files name no class of the latter, and transformers guesses the name of the
whole, without end (huggingface/transformers#42142). ERNIE's bear the names of transformers 5.0,
of which 5.23 knows that of the image processor alone.
"""


def load_processor(folder: Path, family: str) -> Any:
    """Return a checkpoint's processor, as the files were meant that the family came with.

    Args:
        folder: of the checkpoint.
        family: name of the family, which is the config's `model_type`.

    Raises:
        CheckpointError: its tokenizer would fill the memory.
    """
    from transformers import AutoProcessor

    check_tokenizer(folder)
    if (names := NAMED.get(family)) and (family == "llava_next_video" or not _is_named(folder)):
        return _by_parts(folder, *names)
    processor = AutoProcessor.from_pretrained(folder)
    if family == "smolvlm":
        # Newer releases put the size of pictures in its place: frames lose detail on the way.
        own = read_json(folder / "preprocessor_config.json").get("video_sampling", {})
        if (size := own.get("video_size")) and not (folder / VIDEO_FILE).is_file():
            processor.video_processor.size = type(processor.video_processor.size)(**size)
    return processor


def _is_named(folder: Path) -> bool:
    """Say whether the files name classes of the processor that transformers has."""
    import transformers

    told = read_json(folder / "processor_config.json")
    video = told.get("video_processor") or read_json(folder / VIDEO_FILE)
    names = told.get("processor_class"), video.get("video_processor_type")
    return all(name and hasattr(transformers, name) for name in names)


def _by_parts(folder: Path, whole_name: str, video_name: str) -> Any:
    """Load a processor part by part, as one of the classes named."""
    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer

    whole, video = getattr(transformers, whole_name), getattr(transformers, video_name)
    settings = read_json(folder / "processor_config.json")
    parts = {
        "video_processor": video.from_pretrained(folder),
        "image_processor": AutoImageProcessor.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }
    template = whole.get_processor_dict(folder)[0].get("chat_template")
    known = inspect.signature(whole.__init__).parameters
    others = {name: settings[name] for name in settings if name in known and name not in parts}
    return whole(**parts, **{"chat_template": template, **others})
