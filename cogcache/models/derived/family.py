"""A family derived from its transformers class, config and processor.

Nothing in it knows a model: the feature call is found by its arguments, the prompt is laid out by
the checkpoint's own chat template and processor, and what that processor put in place of the
video's placeholder is cached with the features. Each clip checks that this holds for its class.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cogcache.errors import ConfigError, FeaturesError, UnknownFamilyError
from cogcache.keys import Field, epoch_after
from cogcache.models.checkpoints.bounds import check_ids
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived import conversation as conversations
from cogcache.models.derived import features as parts
from cogcache.models.derived import positions as mrope
from cogcache.models.derived.pixels import published_pixels
from cogcache.models.derived.positions import PositionRule
from cogcache.models.derived.sampling import published_frames
from cogcache.models.derived.settled import with_frame_text, with_rate
from cogcache.models.derived.times import FrameTimes
from cogcache.models.family import ClipTensors, Family, PromptRow, left_padded
from cogcache.system import out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.models.derived.processing import ClipProcessor, Processed
    from cogcache.settings import Language, PixelLimits, Sampling
    from cogcache.video import ClipFrames, FamilyRule

WITHOUT_BEAMS = ("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "nemotron_h_omni")
"""Their features stand under `video` and their slots are image tokens, which beams cannot match."""
WHOLE_PREFILL = ("molmo2",)
"""Their attention goes both ways within a video, which transformers allows in a first pass only."""
FIRST_EPOCH = 2
"""Of features and captions that no later change concerns."""
PROBE = "Please describe this video in detail."


class DerivedFamily(Family):
    """Any transformers class whose `generate` takes features from outside."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.name = str(checkpoint.config.get("model_type", "unknown"))
        self._heard: set[str] = set()
        self.epoch = epoch_after("features", self.name, FIRST_EPOCH)
        self.layout_epoch = epoch_after("captions", self.name, FIRST_EPOCH)

    def preprocessing(self) -> Mapping[str, Field]:
        """Return the digest of the processor's files."""
        return {
            "kind": "transformers",
            "processor": conversations.processor_digest(self.checkpoint),
        }

    def within(self, pixels: PixelLimits | None) -> Self:
        """Return the family whose processor scales frames to these limits."""
        if pixels is None:
            return self
        chosen = copy.copy(self)
        chosen.__dict__["processor"] = self.processor.within(pixels)
        return chosen

    def published_frames(self, sampling: Sampling) -> FamilyRule:
        """Return the frames that the family's release takes."""
        return published_frames(self.name, self.checkpoint.folder, sampling)

    def published_pixels(self) -> PixelLimits | None:
        """Return Qwen's limits: its authors' code scales frames before the processor sees them."""
        return published_pixels(self.name)

    def with_system(self, system: str, prompt: str) -> str:
        """Return the prompt as a conversation that begins with a system message.

        Raises:
            ConfigError: it has one already, or the chat template leaves it out.
        """
        told = conversations.with_system(system, prompt)
        if system not in self._heard:
            text = self.processor.laid_out(conversations.about_nothing(told))
            if system.strip() not in text:
                problem = f"the chat template of {self.name} leaves system prompts out"
                raise ConfigError(problem, "leave out --system, and say it in the prompt")
            self._heard.add(system)
        return told

    def check_prompt(self, prompt: str) -> None:
        """Take a question or a whole conversation: both are laid out by the chat template."""

    def layout(self, language: Language) -> str:
        """Return the digest of the checkpoint's chat template, with a name."""
        if language.layout != "chat":
            problem = f"{self.name} has no layout {language.layout!r}"
            raise ConfigError(problem, "leave it at --layout chat: its own chat template")
        return conversations.template_name(self.checkpoint, self.name)

    def prepare(self, clip: ClipFrames, dtype: torch.dtype) -> ClipTensors:
        """Run the processor over the clip and a probe prompt.

        Raises:
            UnknownFamilyError: prompts without pixels would differ from those with them.
        """
        conversation = conversations.conversation_of(PROBE)
        processed = self.processor.process(clip, conversation)
        self._check_sequences(processed, conversation)
        texts = {
            "replacements": json.dumps(list(processed.replacements), ensure_ascii=False),
            "slots": json.dumps(self.processor.slots(processed.sequences)),
        }
        inputs = {
            name: tensor.to(dtype)
            if parts.PIXELS in name and tensor.is_floating_point()
            else tensor
            for name, tensor in processed.inputs.items()
        }
        clip_facts = asdict(FrameTimes.of_clip(clip))
        return self.settled(ClipTensors(inputs, texts, clip_facts))

    def settled(self, clip: ClipTensors) -> ClipTensors:
        """Return a clip's inputs or features with rates and frame texts made from its times."""
        return with_frame_text(self.with_rate(clip), self.processor)

    def with_rate(self, clip: ClipTensors) -> ClipTensors:
        """Return a clip's inputs or features with the published rate of its frames."""
        rate = self.position_rule.rate if self.position_rule else mrope.RATE_ALONE.get(self.name)
        return with_rate(clip, rate, self.config) if rate else clip

    @property
    def position_rule(self) -> PositionRule | None:
        """How positions are counted where they have axes for time, height and width."""
        return mrope.RULES.get(self.name)

    def positions(self, row: PromptRow) -> Tensor | None:
        """Return where a prompt's tokens stand; None where they stand on a line. int64 [4, L].

        Raises:
            FeaturesError: the prompt has other slots than the clip has features, or the clip
                has lost its grid.
        """
        rule, tensors = self.position_rule, parts.extras([row.features.tensors], "cpu")
        slots = self.slots(row)
        if rule is None or not (mrope.GRID in tensors or self.processor.takes_videos):
            return None
        try:
            grids = mrope.grids_of(rule, tensors, self.config, int(slots.sum()))
            return mrope.with_text_axis(mrope.positions_of(slots, grids))
        except ValueError as error:
            problem = f"the prompt does not fit the features of the clip: {error}"
            raise FeaturesError("features_corrupt", problem, "run `cogcache verify`") from error

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The model's config, with all defaults in it."""
        return self.full_config()

    def full_config(self) -> Mapping[str, Any]:
        """Return the config as its class reads it."""
        from cogcache.models.classes import load_config, model_class

        config: dict[str, Any] = load_config(
            self.checkpoint, model_class(self.checkpoint)
        ).to_dict()
        return config

    def expected(self, inputs: ClipTensors, dtype: torch.dtype) -> ClipTensors:
        """Return a row a slot, for each level of features, and what goes with them."""
        import torch

        config = self.full_config()
        text, vision = config.get("text_config", config), config.get("vision_config", {})
        shape = (max(json.loads(inputs.texts["slots"])), text["hidden_size"])
        names = [parts.FEATURES]
        names += [
            f"{parts.DEEPSTACK}.{level}"
            for level in range(len(vision.get("deepstack_visual_indexes", ())))
        ]
        features = {name: torch.empty(shape, dtype=dtype, device="meta") for name in names}
        return ClipTensors(features | self.extras(inputs.tensors))

    def encode(
        self, model: PreTrainedModel, clips: Sequence[ClipTensors], frames_per_batch: int
    ) -> list[ClipTensors]:
        """Run the feature call clip by clip: how frames may be grouped differs by class."""
        return [self._encode_one(model, clip) for clip in clips]

    def row(self, features: ClipTensors, prompt: str, layout: str) -> PromptRow:
        """Lay out a prompt, a question or a whole conversation, around a clip's features."""
        features = self.settled(features)
        replacements = json.loads(features.texts["replacements"])
        conversation = conversations.conversation_of(prompt)
        return PromptRow(features, self.processor.sequences(conversation, replacements))

    def answer_ids(
        self, features: ClipTensors, prompt: str, layout: str, caption: str
    ) -> list[int]:
        """Return a caption as the chat template writes an answer, and what ends its turn.

        The end is a token that ends captions when they are made: the template's own where it is
        one of those.
        """
        count = len(json.loads(features.texts["replacements"]))
        conversation = conversations.conversation_of(prompt)
        ids, behind = self.processor.answer_ids(conversation, count, caption)
        ends = [token for token in behind if token in self.stop_ids]
        return [*ids, ends[0] if ends else self.stop_ids[0]]

    def text_row(self, prompt: str, layout: str) -> PromptRow:
        """Lay out a question by the chat template, about no clip."""
        conversation = conversations.about_nothing(prompt)
        return PromptRow(ClipTensors({}), self.processor.sequences(conversation, []))

    def prefix_length(self, row: PromptRow) -> int:
        """Return the number of tokens up to the last feature slot.

        Never less: attention within a clip goes both ways in some classes.
        """
        slots = self._slots(row)
        return int(slots.max()) + 1 if len(slots) else 0

    def head_length(self, row: PromptRow) -> int:
        """Return the number of tokens before the first feature slot, where that was shown."""
        from cogcache.models.registry import FAMILIES

        if self.name not in {entry.name for entry in FAMILIES} - {*WHOLE_PREFILL}:
            return 0
        slots = self._slots(row)
        return int(slots.min()) if len(slots) else 0

    def _slots(self, row: PromptRow) -> Tensor:
        """Return the places of the feature slots. int64 [N, 1]."""
        return self.slots(row).nonzero()

    def slots(self, row: PromptRow) -> Tensor:
        """Say of each token whether features stand in its place. bool [L]."""
        import torch

        ids = row.sequences["input_ids"]
        return torch.isin(ids, torch.tensor(sorted(self.processor.slot_ids)))

    def feature_levels(self, features: ClipTensors) -> list[list[str]]:
        """Name the features, then those of each deep-stack level."""
        return parts.levels_of(features.tensors)

    def model_inputs(self, rows: Sequence[PromptRow], model: PreTrainedModel) -> dict[str, Any]:
        """Return ids, types, mask, positions, grids and features."""
        import torch

        device = model.device
        inputs: dict[str, Any] = {
            name: left_padded(
                [row.sequences[name] for row in rows], self.pad_id if name == "input_ids" else 0
            ).to(device)
            for name in rows[0].sequences
        }
        ones = [torch.ones(row.length) for row in rows]
        inputs["attention_mask"] = left_padded(ones, 0).to(device)
        rows = [replace(row, features=self.with_rate(row.features)) for row in rows]
        clips = [row.features.tensors for row in rows]
        if not clips[0]:
            return inputs
        output = parts.encoder_output(clips, device, model.dtype)
        inputs["mm_encoder_outputs"] = {rows[0].features.texts["modality"]: output}
        places = [each for row in rows if (each := self.positions(row)) is not None]
        if places:
            inputs["position_ids"] = mrope.left_padded(places).to(device)
        return inputs | parts.extras(clips, device)

    def rows_together(self, wanted: int, num_beams: int) -> int:
        """Return one row with beams: some classes mix up clips of unequal length, silently."""
        if num_beams > 1 and self.name in WITHOUT_BEAMS:
            problem = f"transformers cannot run {self.name} on videos with beams"
            raise ConfigError(problem, "leave num_beams at 1")
        return wanted if num_beams == 1 else 1

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text."""
        text: str = self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text.strip()

    def tokenizer_json(self) -> str:
        """Return the tokenizer, with the tokens that its config adds."""
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {self.checkpoint.folder} has no tokenizer.json",
                "--json-schema needs one: take a checkpoint that has it",
            )
        text: str = tokenizer.backend_tokenizer.to_str()
        return text

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What the generation config says ends a text, else the config or the tokenizer."""
        found = self._token_ids("eos_token_id")
        return found or (int(self.processor.tokenizer.eos_token_id),)

    @cached_property
    def pad_id(self) -> int:
        """The padding token; what ends a text where there is none."""
        pad = self.processor.tokenizer.pad_token_id
        return int(pad) if pad is not None else (self._token_ids("pad_token_id") + self.stop_ids)[0]

    @cached_property
    def processor(self) -> ClipProcessor:
        """The checkpoint's processor."""
        from cogcache.models.derived.processing import ClipProcessor

        return ClipProcessor(self.checkpoint, self.name)

    def call(self, function: Any, inputs: Mapping[str, Tensor]) -> Any:
        """Run the feature call.

        Raises:
            UnknownFamilyError: it fails, as some do on every video.
        """
        try:
            return function(**inputs, return_dict=True)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if out_of_memory(error):
                raise
            problem = f"{self.name} ({parts.version_text()}): {function.__name__} fails"
            raise UnknownFamilyError(f"{problem}: {error}", REPORT) from error

    def cached(self, features: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name what is cached of a clip: features, and what the prompt needs beside them."""
        tensors = parts.named(parts.FEATURES, features.pooler_output)
        if (deep := getattr(features, "deepstack_features", None)) is not None:
            tensors |= parts.named(parts.DEEPSTACK, deep)
        return tensors | self.extras(inputs)

    def extras(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Choose what the language half wants to know beside features: all but the pixels."""
        return {
            f"{parts.EXTRA}{name}": value
            for name, value in inputs.items()
            if parts.PIXELS not in name
        }

    def _encode_one(self, model: PreTrainedModel, clip: ClipTensors) -> ClipTensors:
        import torch

        from cogcache.models.halves.raised import raised_features

        modality, given = parts.feature_call(model, clip.tensors)
        function = getattr(model.base_model, f"get_{modality}_features")
        moved = {name: tensor.to(model.device) for name, tensor in given.items()}
        with torch.inference_mode(), raised_features(model):
            tensors = self.cached(self.call(function, moved), clip.tensors)
        slots = json.loads(clip.texts["slots"])
        count = parts.num_rows(parts.nested(parts.FEATURES, tensors))
        if count not in (*slots, sum(slots)):
            problem = f"{self.name} ({parts.version_text()}) gave {count} feature rows for a clip"
            room = " or ".join(map(str, slots)) or "none"
            raise UnknownFamilyError(f"{problem} whose prompt has room for {room}", REPORT)
        return ClipTensors(tensors, {**clip.texts, "modality": modality}, clip.facts)

    def _check_sequences(
        self, processed: Processed, conversation: list[conversations.Message]
    ) -> None:
        import torch

        found = self.processor.sequences(conversation, processed.replacements)
        wanted = processed.sequences
        if set(found) == set(wanted) and all(torch.equal(found[k], wanted[k]) for k in wanted):
            return
        differing = sorted(
            name
            for name in set(found) | set(wanted)
            if name not in found or name not in wanted or not torch.equal(found[name], wanted[name])
        )
        problem = f"{self.name} ({parts.version_text()}): a prompt laid out without pixels"
        raise UnknownFamilyError(f"{problem} has other {', '.join(differing)}", REPORT)

    def _token_ids(self, name: str) -> tuple[int, ...]:
        config = self.checkpoint.config
        for source in (self._generation_config, config, config.get("text_config") or {}):
            value = source.get(name)
            if value is not None:
                found = tuple(value) if isinstance(value, list) else (value,)
                check_ids(found, self.checkpoint.folder)
                return found
        return ()

    @cached_property
    def _generation_config(self) -> dict[str, Any]:
        return conversations.read_json(self.checkpoint.folder / "generation_config.json")


REPORT = "it cannot be run in two stages as it is; report the model"
