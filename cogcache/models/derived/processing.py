"""What a checkpoint's own processor makes of a clip, and of later prompts about it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cogcache.errors import ConfigError
from cogcache.models.checkpoints.bounds import blamed_on, check_processor
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.conversation import (
    PROCESSOR_FILES,
    Message,
    plain_text,
    read_json,
    with_images,
)
from cogcache.models.derived.explainer import Explainer
from cogcache.models.derived.frame_texts import whole_placeholder
from cogcache.models.derived.pixels import size_within
from cogcache.models.derived.processor_files import load_processor
from cogcache.models.derived.times import FrameTimes
from cogcache.settings import PixelLimits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.video_utils import VideoMetadata

    from cogcache.video import ClipFrames

VIDEO_ARGUMENTS = ("video_metadata", "do_sample_frames")
"""Without the first a processor invents times, without the second it drops frames."""
SLOT = re.compile(r"(image|video)_(token|patch)_(id|index)")
"""Names in a config of tokens that features go in place of."""


@dataclass(frozen=True, slots=True)
class Processed:
    """What a processor made of a clip with a prompt.

    Args:
        inputs: all that is not text, by name.
        sequences: what has a value a token. Each int64 [L].
        replacements: what was put in place of each placeholder.
    """

    inputs: Mapping[str, Tensor]
    sequences: Mapping[str, Tensor]
    replacements: Sequence[str]


class ClipProcessor:
    """A checkpoint's processor, for one clip at a time."""

    pixels: PixelLimits | None = None
    """How large frames may be, where that is not left to the checkpoint."""

    def __init__(self, checkpoint: Checkpoint, family: str) -> None:
        """Load the processor.

        Raises:
            UnknownFamilyError: this transformers cannot load it, or it cannot be told the times
                of frames.
        """
        self.family, self._explainer = family, Explainer(family)
        self.config = checkpoint.config
        for name in PROCESSOR_FILES:
            check_processor(read_json(checkpoint.folder / name), checkpoint.folder / name)
        with blamed_on(checkpoint.folder), self._explainer.explained("from_pretrained"):
            self.processor = load_processor(checkpoint.folder, family)
        if not hasattr(self.processor, "tokenizer"):
            raise self._explainer.refusal(
                "it is only a part of a processor: processor_config.json is missing"
            )
        self.tokenizer = self.processor.tokenizer
        video = getattr(self.processor, "video_processor", None)
        self.takes_videos = video is not None and bool(getattr(self.processor, "video_token", None))
        if self.takes_videos:
            _check_arguments(video, self._explainer)
        elif not getattr(self.processor, "image_token", None):
            raise self._explainer.refusal("it takes neither videos nor images")
        self._text_only = copy.copy(self.processor)
        # It would miss the pixels that the placeholders stand for.
        self._text_only.validate_inputs = lambda *_, **__: None

    @property
    def placeholder(self) -> str:
        """What stands for a clip, or for a frame of it, in a prompt."""
        token = self.processor.video_token if self.takes_videos else self.processor.image_token
        return str(token)

    def text(self, conversation: Sequence[Message], num_replacements: int) -> str:
        """Lay out a conversation by the chat template, with placeholders in it.

        Raises:
            ConfigError: there is no template, it refuses the conversation, or a text in the
                conversation looks like a placeholder.
        """
        if not self.takes_videos:
            conversation = with_images(conversation, num_replacements)
        text = self.laid_out(conversation)
        if (count := text.count(self.placeholder)) != num_replacements:
            problem = f"{self.placeholder} stands {count} times in the laid out prompt"
            raise ConfigError(
                f"{problem}, where {num_replacements} are wanted", "word it otherwise"
            )
        return text

    def laid_out(self, conversation: Sequence[Message]) -> str:
        """Return a conversation as the chat template lays it out.

        Raises:
            ConfigError: there is no template, or it refuses the conversation.
        """
        import jinja2

        try:
            text: str = self.processor.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, KeyError, MemoryError) as error:
            told = str(error) or "it writes more than there is memory for"
            problem = f"the chat template of {self.family} refuses the conversation: {told}"
            raise ConfigError(problem, "see how the model's own page lays it out") from error
        except ValueError:
            if getattr(self.processor, "chat_template", None):
                raise
            text = plain_text(self.family, conversation, self.placeholder)
        return whole_placeholder(text, self.processor)

    def process(self, clip: ClipFrames, conversation: Sequence[Message]) -> Processed:
        """Run the processor over frames and a prompt, as its class is meant to be used.

        Raises:
            UnknownFamilyError: the processor and this transformers do not fit.
            VideoError: the frames are not of a kind that it takes.
        """
        count = 1 if self.takes_videos else len(clip.frames)
        text = self.text(conversation, count)
        processor, kept = _remembering(self.processor, of_videos=self.takes_videos)
        arguments = (
            self._video_arguments(clip) if self.takes_videos else {"images": list(clip.frames)}
        )
        with self._explainer.explained("__call__", of_clip=True):
            outputs = processor(
                text=[text], return_tensors="pt", **arguments, **self._text_arguments(text)
            )
        if len(kept) != count:
            raise self._explainer.refusal("it does not say what it puts in place of a placeholder")
        tensors = {
            name: _as_tensor(name, value, self._explainer) for name, value in outputs.items()
        }
        sequences = _sequences(tensors)
        inputs = {
            name: tensor
            for name, tensor in tensors.items()
            if name not in sequences and name != "attention_mask"
        }
        return Processed(inputs, sequences, [str(each) for each in kept])

    def sequences(
        self, conversation: Sequence[Message], replacements: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return ids and types of a prompt about a processed clip. No pixels are needed."""
        text = self.text(conversation, len(replacements))
        images, videos = ([], replacements) if self.takes_videos else (replacements, [])
        processor = self._text_only
        expanded, _ = type(processor).get_text_with_replacements(
            processor, [text], list(images), list(videos), []
        )
        with self._explainer.explained("__call__"):
            outputs = self.tokenized(processor, expanded, self._text_arguments(text))
        return _sequences(dict(outputs))

    def answer_ids(
        self, conversation: Sequence[Message], num_replacements: int, caption: str
    ) -> tuple[list[int], list[int]]:
        """Return a caption's tokens after a prompt, and those that the template puts after it.

        The words before it are given to the tokenizer with it: some tokenizers write a word
        otherwise where nothing stands before it.
        """
        asked = self.text(conversation, num_replacements)
        template = self.processor if getattr(self.processor, "chat_template", None) else None
        count = None if self.takes_videos else asked.count(self.placeholder)
        lead, behind = _around_answer(template, conversation, asked, caption, count)
        before = asked.rpartition(self.placeholder)[2]
        start, whole = self._plain_ids(before), self._plain_ids(before + lead + caption)
        fits = whole[: len(start)] == start
        ids = whole[len(start) :] if fits else self._plain_ids(lead + caption)
        return ids, self._plain_ids(behind)

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def tokenized(
        self, processor: Any, text: list[str], arguments: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Run the processor over text alone."""
        outputs: Mapping[str, Tensor] = processor(text=text, return_tensors="pt", **arguments)
        return outputs

    @cached_property
    def slot_ids(self) -> frozenset[int]:
        """The tokens that may stand for a feature row."""
        names = ("image_token", "video_token")
        tokens = {
            getattr(each, n, None) for each in (self.processor, self.tokenizer) for n in names
        }
        ids = {self.tokenizer.convert_tokens_to_ids(token) for token in tokens if token}
        ids |= {index for name, index in self.config.items() if SLOT.fullmatch(name)}
        return frozenset(index for index in ids if index is not None)

    def slots(self, sequences: Mapping[str, Tensor]) -> list[int]:
        """Count the tokens that may stand for a feature row, one number a token."""
        counts = [int((sequences["input_ids"] == index).sum()) for index in self.slot_ids]
        return sorted(count for count in counts if count)

    def _text_arguments(self, text: str) -> dict[str, bool]:
        """A template that writes the first token itself must not get it twice."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}

    def _video_arguments(self, clip: ClipFrames) -> dict[str, Any]:
        return {
            "videos": [clip.frames],
            "video_metadata": [metadata(clip)],
            "do_sample_frames": False,
            **self._size(len(clip.frames)),
        }

    def within(self, pixels: PixelLimits) -> Self:
        """Return the processor as it scales frames to these limits.

        Raises:
            ConfigError: it takes frames of one size alone.
        """
        chosen = copy.copy(self)
        chosen.pixels = pixels
        chosen._size(1)
        return chosen

    def _size(self, num_frames: int) -> dict[str, Any]:
        if self.pixels is None:
            return {}
        video = getattr(self.processor, "video_processor", None)
        size = size_within(video, self.pixels, num_frames, self.family)
        # Qwen3-VL's has a limit of its own that is off, and will be on in a later release.
        own = {"cap_pixels_per_frame": False} if hasattr(video, "cap_pixels_per_frame") else {}
        return {"size": size, **own}


def _remembering(processor: Any, *, of_videos: bool) -> tuple[Any, list[str]]:
    """Return a copy of a processor, and the list to which it adds what it puts in placeholders."""
    kept: list[str] = []
    ours = copy.copy(processor)

    def remembering(
        text: list[str],
        images_replacements: Sequence[str] = (),
        videos_replacements: Sequence[str] = (),
        audio_replacements: Sequence[str] = (),
    ) -> Any:
        kept.extend(videos_replacements if of_videos else images_replacements)
        return type(ours).get_text_with_replacements(
            ours, text, images_replacements, videos_replacements, audio_replacements
        )

    ours.get_text_with_replacements = remembering
    return ours, kept


def _check_arguments(video_processor: Any, explainer: Explainer) -> None:
    """Refuse a video processor that cannot be told the times of its frames."""
    known = getattr(getattr(video_processor, "valid_kwargs", None), "__annotations__", {})
    if absent := [name for name in VIDEO_ARGUMENTS if name not in known]:
        raise explainer.refusal(f"{type(video_processor).__name__} has no argument {absent[0]}")


def _as_tensor(name: str, value: Any, explainer: Explainer) -> Tensor:
    import torch

    try:
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise explainer.refusal(f"its output {name} is not a tensor") from error


def _around_answer(
    template: Any, conversation: Sequence[Message], asked: str, caption: str, images: int | None
) -> tuple[str, str]:
    """Return what stands between a prompt and its answer, and what stands after that.

    Args:
        template: the processor, if it has a chat template; None for the usual forms.
        conversation: the messages of the prompt.
        asked: the prompt as it is laid out.
        caption: the answer.
        images: how many images stand for the clip, where the processor takes no videos.
    """
    if template is None:
        return " ", ""  # the usual forms, which end with a colon
    answer = {"role": "assistant", "content": [{"type": "text", "text": caption}]}
    turns = [*conversation, answer]
    told = template.apply_chat_template(
        turns if images is None else with_images(turns, images), tokenize=False
    )
    lead, found, behind = told.removeprefix(asked).partition(caption)
    fits = told.startswith(asked) and found and not lead.strip()
    return (lead, behind) if fits else ("", behind if found else "")


def metadata(clip: ClipFrames) -> VideoMetadata:
    """Say when the frames were, in the terms of processors.

    They take index / fps for the time, and count / total * fps for the rate of sampling. Both are
    made to come out right for a part of a video and for one of uneven rate.
    """
    from transformers.video_utils import VideoMetadata

    times = FrameTimes.of_clip(clip)
    seconds, count = times.timestamps_s, len(times.timestamps_s)
    span_s = (seconds[-1] - seconds[0]) * count / max(1, count - 1) or clip.duration_s
    indices, fps = times.on_ticks()
    return VideoMetadata(
        total_num_frames=max(1, round(span_s * fps)),
        fps=fps,
        height=clip.frames.shape[1],
        width=clip.frames.shape[2],
        duration=clip.duration_s,
        video_backend=clip.decoder,
        frames_indices=indices,
    )


def _sequences(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Choose what has a value a token, out of a processor's outputs for one prompt."""
    shape = outputs["input_ids"].shape
    return {
        name: value[0].long()
        for name, value in outputs.items()
        if name != "attention_mask" and getattr(value, "shape", None) == shape
    }
