"""What a family of models says that transformers does not.

A family turns decoded frames into what its vision half reads, names what is cached, and lays
a prompt out around cached features. Weights, halves and quantisation are the same for all.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from cogcache.errors import ConfigError
from cogcache.keys import Field
from cogcache.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.settings import Language, PixelLimits, Sampling
    from cogcache.video import ClipFrames, FamilyRule, SamplingRule


_BRACKETS = ("<", "[")
"""What the marks of all tokenizers that we know begin with."""


@dataclass(frozen=True, slots=True)
class ClipTensors:
    """Named tensors and texts of one clip: what goes into the vision half, or what comes out.

    Args:
        tensors: by name.
        texts: what the prompt needs and no tensor can say, such as frame times in words.
        facts: what is told of the clip's frames in a feature file: their times, fps and bounds.
    """

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One clip with one prompt, or a prompt alone, ready for the language half.

    Args:
        features: what stage one cached for the clip; nothing where the prompt is about none.
        sequences: `input_ids` and whatever else has a value a token. Each int64 [L].
    """

    features: ClipTensors
    sequences: Mapping[str, Tensor]

    @property
    def length(self) -> int:
        """Number of prompt tokens, feature slots included."""
        return int(self.sequences["input_ids"].shape[0])


class Family(ABC):
    """A kind of model. Made from a checkpoint's small files; no weight is read here."""

    name: str
    epoch: int = 1
    """Raised when the code that makes features changes what it makes. Part of the feature key."""
    layout_epoch: int = 1
    """Raised when the code that makes ids, positions or rates of features and a prompt changes what
    it makes. Part of the caption key, where it is the field `epoch`."""

    cache_points: ClassVar[tuple[str, ...]] = ("projected",)
    """Which outputs of the vision half can be cached."""
    cache_point: str = "projected"
    frames_alone: ClassVar[bool] = False
    """Whether frames do not see each other, the first axis of all tensors into and out of the
    vision half is that of the frames, and nothing else comes out of it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def at(self, cache_point: str) -> Self:
        """Return the family as it caches this output of its vision half.

        Raises:
            ConfigError: it cannot.
        """
        if cache_point not in self.cache_points:
            problem = f"{self.name} has no cache point {cache_point!r}"
            raise ConfigError(problem, f"set cache_point to {' or '.join(self.cache_points)}")
        chosen = copy.copy(self)
        chosen.cache_point = cache_point
        return chosen

    def within(self, pixels: PixelLimits | None) -> Self:
        """Return the family as it scales frames to these limits; None for the checkpoint's own.

        Raises:
            ConfigError: it takes frames of one size alone.
        """
        if pixels is None:
            return self
        problem = f"{self.name} takes frames of one size: it has no limits of pixels"
        raise ConfigError(problem, "leave out max_pixels, min_pixels and max_video_pixels")

    def frames_of(self, sampling: Sampling) -> SamplingRule | FamilyRule:
        """Return which frames of a clip are taken: settings as they are, or the family's own.

        Raises:
            ConfigError: the strategy is `published`, and the family's release takes no frames by
                itself, or a setting would have no effect.
        """
        return self.published_frames(sampling) if sampling.strategy == "published" else sampling

    @abstractmethod
    def published_frames(self, sampling: Sampling) -> FamilyRule:
        """Return the frames that the family's release takes.

        Raises:
            ConfigError: as `frames_of` says.
        """

    def published_pixels(self) -> PixelLimits | None:
        """Return the limits that the authors' own code scales frames to; None: the checkpoint's."""
        return None

    def partition_settings(self) -> dict[str, Any]:
        """Return what to set on the model's config for its halves to meet at the cache point."""
        return {}

    @abstractmethod
    def preprocessing(self) -> Mapping[str, Field]:
        """Return what becomes of frames before the vision half, for the feature key."""

    @abstractmethod
    def layout(self, language: Language) -> str:
        """Return the name of the prompt's layout, for the caption key.

        Raises:
            ConfigError: the family has no such layout.
        """

    def config_overrides(self, language: Language) -> dict[str, Any]:
        """Return what to set on the model's config before the language half is built."""
        return self.partition_settings()

    def full_config(self) -> Mapping[str, Any]:
        """Return the model's config with all defaults in it, where the file leaves them out."""
        return self.checkpoint.config

    @abstractmethod
    def expected(self, inputs: ClipTensors, dtype: torch.dtype) -> ClipTensors:
        """Return what will be cached of a clip as tensors on meta: shapes and types only.

        Args:
            inputs: what `prepare` made.
            dtype: of the vision half.
        """

    @abstractmethod
    def prepare(self, clip: ClipFrames, dtype: torch.dtype) -> ClipTensors:
        """Turn decoded frames into the vision half's inputs; runs in a decode worker.

        Args:
            clip: frames uint8 [T, H, W, 3] and their times.
            dtype: of the vision half; pixels are cast to it.
        """

    @abstractmethod
    def encode(
        self, model: PreTrainedModel, clips: Sequence[ClipTensors], frames_per_batch: int
    ) -> list[ClipTensors]:
        """Run the vision half over several clips and return what is cached of each.

        Args:
            model: the vision half.
            clips: what `prepare` made.
            frames_per_batch: most frames in one pass, where frames can be batched.

        Returns:
            For each clip its tensors, on the model's device, and texts.
        """

    def project(self, model: PreTrainedModel, features: ClipTensors) -> ClipTensors:
        """Take cached features from before the projector to behind it, frame by frame.

        Args:
            model: the projector; see `load_projector`.
            features: of one clip, or of some of its frames.

        Returns:
            What would be cached behind the projector, in the host's memory.

        Raises:
            ConfigError: the family has no such cache point.
        """
        raise ConfigError(f"{self.name} has no projector of its own", "run `cogcache extract`")

    @abstractmethod
    def row(self, features: ClipTensors, prompt: str, layout: str) -> PromptRow:
        """Lay out one prompt around one clip's cached features."""

    @abstractmethod
    def answer_ids(
        self, features: ClipTensors, prompt: str, layout: str, caption: str
    ) -> list[int]:
        """Return the tokens of a caption as they follow its prompt, and the one that ends it.

        Args:
            features: of the clip; their texts and shapes count.
            prompt: what `row` lays out.
            layout: of the prompt.
            caption: what the model is to say.
        """

    @abstractmethod
    def text_row(self, prompt: str, layout: str) -> PromptRow:
        """Lay out a prompt about no clip: words for the language half alone."""

    def prefix_length(self, row: PromptRow) -> int:
        """Return how many tokens go up to the end of the video; 0 where prompts cannot share them.

        Their keys and values are the same for every prompt that has the same tokens up to there.
        """
        return 0

    def head_length(self, row: PromptRow) -> int:
        """Return how many tokens stand before the video; 0 where those of clips cannot be shared.

        Never more than stand before the first feature slot.
        """
        return 0

    @abstractmethod
    def slots(self, row: PromptRow) -> Tensor:
        """Say of each token whether features stand in its place. bool [L]."""

    def positions(self, row: PromptRow) -> Tensor | None:
        """Return where a prompt's tokens stand; None where they are counted one by one.

        Returns:
            int64 [L] on a line, or [4, L]: the count of tokens, time, height and width.
        """
        return None

    @abstractmethod
    def feature_levels(self, features: ClipTensors) -> list[list[str]]:
        """Name the tensors that stand in the slots, in the order of their rows.

        Returns:
            First those that take the embeddings' place, then those of each deep-stack level.
        """

    def feature_width(self) -> int:
        """Return how many numbers of a level stand in one slot, as they are cached."""
        return int(self.text_config["hidden_size"])

    def num_slots(self, features: Tensor) -> int:
        """Return how many slots the rows of a tensor stand in."""
        return int(features.shape[:-1].numel())

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The config of the language model, which stands within the model's or is all of it."""
        config = self.full_config()
        found: Mapping[str, Any] = config.get("text_config") or config
        return found

    @abstractmethod
    def model_inputs(self, rows: Sequence[PromptRow], model: PreTrainedModel) -> dict[str, Any]:
        """Return the arguments of `generate` for a left-padded batch of rows.

        All of them are about a clip, or none is.
        Made anew for each call: transformers writes into what it is given.
        """

    @abstractmethod
    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text, special tokens left out, blanks stripped."""

    @abstractmethod
    def tokenizer_json(self) -> str:
        """Return the tokenizer as the library `tokenizers` writes it.

        Raises:
            ConfigError: it is of another kind.
        """

    def plain(self, text: str) -> str:
        """Return a text that is put into a prompt with the tokenizer's own marks taken apart.

        A file's name or a caption must not end a turn, or stand for a video: it is words.
        """
        if not any(bracket in text for bracket in _BRACKETS):
            return text  # without asking for the tokenizer, which costs seconds
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    @cached_property
    def _marks(self) -> list[str]:
        added = json.loads(self.tokenizer_json()).get("added_tokens", [])
        marks = (each["content"] for each in added)
        return [mark for mark in marks if len(mark) > 2 and mark.startswith(_BRACKETS)]

    def rows_together(self, wanted: int, num_beams: int) -> int:
        """Return how many of `wanted` rows can be generated for in one call.

        Raises:
            ConfigError: the model cannot be run with so many beams.
        """
        return wanted

    def with_system(self, system: str, prompt: str) -> str:
        """Return a prompt that tells the model something before it asks.

        Raises:
            ConfigError: the family has no system prompts.
        """
        problem = f"{self.name} was trained without system prompts"
        raise ConfigError(problem, "leave out --system, and say it in the prompt")

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that is a whole conversation, where a family takes one question.

        Raises:
            ConfigError: it is one.
        """
        from cogcache.models.derived.conversation import messages_of

        if messages_of(prompt) is not None:
            problem = f"{self.name} takes one question, not a list of messages: {prompt[:60]!r}"
            raise ConfigError(problem, "write what is asked as plain text")

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a caption."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """Token id that fills rows up."""


def left_padded(sequences: Sequence[Tensor], fill: int) -> Tensor:
    """Stack sequences int64 [L_i] into int64 [B, max L], filled up on the left."""
    import torch

    rows = torch.nn.utils.rnn.pad_sequence(
        list(sequences), batch_first=True, padding_value=fill, padding_side="left"
    )
    return rows.long()
