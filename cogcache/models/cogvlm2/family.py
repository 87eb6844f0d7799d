"""The CogVLM2-Video family: frames are encoded one by one, prompts follow the published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cogcache.errors import CheckpointError, ConfigError
from cogcache.keys import Field
from cogcache.models.checkpoints.bounds import blamed_on, check_ids
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.checkpoints.tokenizer_bounds import check_tokenizer
from cogcache.models.cogvlm2 import layout as layouts
from cogcache.models.family import ClipTensors, Family, PromptRow, left_padded

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.settings import Language, Sampling
    from cogcache.video import ClipFrames, FamilyRule

FEATURES = "features"
_TOKENS = ("bos_token_id", "pad_token_id")


class CogVLM2Family(Family):
    """`THUDM/cogvlm2-llama3-caption`, its siblings, and the bundled `tiny`."""

    name = "cogvlm2"
    cache_points = ("projected", "pooled")
    frames_alone = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        if "vision_config" not in checkpoint.config:
            path = checkpoint.folder / "config.json"
            hint = "this must be the whole model's config.json; fetch it anew"
            raise CheckpointError(f"{path} describes no vision part (vision_config)", hint)
        check_ids([*map(checkpoint.config.get, _TOKENS)], checkpoint.folder)
        vision = checkpoint.config["vision_config"]
        check_ids([vision["image_size"], vision["patch_size"]], checkpoint.folder)
        self.image_size: int = vision["image_size"]
        self.patch_size: int = vision["patch_size"]

    def preprocessing(self) -> Mapping[str, Field]:
        """Return what becomes of frames before the vision half, for the feature key."""
        return {"kind": "cogvlm2", "image_size": self.image_size}

    def layout(self, language: Language) -> str:
        """Return the published template's name."""
        return language.layout

    def config_overrides(self, language: Language) -> dict[str, Any]:
        """Return in which precision rotary tables are built."""
        return {"rotary_dtype": language.rotary_dtype, **self.partition_settings()}

    def partition_settings(self) -> dict[str, Any]:
        """Return which output is cached: it decides which half the projector belongs to."""
        return {"cache_point": self.cache_point}

    def published_frames(self, sampling: Sampling) -> FamilyRule:
        """Refuse: the published code has two ways, `chat` and `base`, which have names here."""
        problem = f"{self.name} was published with two ways to take frames: name the one you want"
        raise ConfigError(problem, "take --strategy per_second (`chat`) or uniform (`base`)")

    def prepare(self, clip: ClipFrames, dtype: torch.dtype) -> ClipTensors:
        """Return `pixel_values_videos`, [T, 3, S, S] in `dtype`."""
        import torch

        from cogcache.models.cogvlm2.preprocessing import preprocess

        pixels = preprocess(torch.from_numpy(clip.frames), self.image_size)
        return ClipTensors({"pixel_values_videos": pixels.to(dtype)})

    def expected(self, inputs: ClipTensors, dtype: torch.dtype) -> ClipTensors:
        """Return `features`: a quarter of the patches a frame, and what the projector adds."""
        import torch

        config = self.checkpoint.config
        num_tokens = (self.image_size // self.patch_size) ** 2 // 4
        num_frames = len(inputs.tensors["pixel_values_videos"])
        shape = (num_frames, num_tokens + 2, config["hidden_size"])
        if self.cache_point == "pooled":
            shape = (num_frames, num_tokens, config["vision_config"]["hidden_size"])
        return ClipTensors({FEATURES: torch.empty(shape, dtype=dtype, device="meta")})

    def encode(
        self, model: PreTrainedModel, clips: Sequence[ClipTensors], frames_per_batch: int
    ) -> list[ClipTensors]:
        """Return each clip's `features`: [T, 66, 4096], or [T, 64, 1792] `pooled`, as published.

        Frames do not see each other, so they are batched over clips.
        """
        import torch

        from cogcache.models.halves.raised import raised_features

        pixels = [clip.tensors["pixel_values_videos"] for clip in clips]
        with torch.inference_mode(), raised_features(model):
            encoded = [
                model.get_video_features(batch.to(model.device)).pooler_output
                for batch in torch.split(torch.cat(pixels), frames_per_batch)
            ]
        parts = torch.split(torch.cat(encoded), [len(clip) for clip in pixels])
        return [ClipTensors({FEATURES: part}) for part in parts]

    def project(self, model: PreTrainedModel, features: ClipTensors) -> ClipTensors:
        """Return `features` behind the projector, boi and eoi added."""
        import torch

        from cogcache.models.halves.raised import raised_features

        with torch.inference_mode(), raised_features(model):
            projected = model.model.project(features.tensors[FEATURES].to(model.device))
        return ClipTensors({FEATURES: projected.cpu()}, features.texts)

    def row(self, features: ClipTensors, prompt: str, layout: str) -> PromptRow:
        """Lay out one question behind a clip's frames."""
        num_frames, tokens_per_frame, _ = features.tensors[FEATURES].shape
        if self.cache_point == "pooled":
            tokens_per_frame += 2  # the language half puts boi and eoi around them
        return self._row(features, prompt, layout, (num_frames, tokens_per_frame))

    def answer_ids(
        self, features: ClipTensors, prompt: str, layout: str, caption: str
    ) -> list[int]:
        """Return a blank and the caption, as answers stand in the published history of turns."""
        before = layouts.question_text(prompt, layout)
        blank = " " if before and not before[-1].isspace() else ""
        return [*self._encode(blank + caption), self.stop_ids[0]]

    def text_row(self, prompt: str, layout: str) -> PromptRow:
        """Lay out one question in the same template, about no frames."""
        return self._row(ClipTensors({}), prompt, layout, (0, 0))

    def _row(
        self, features: ClipTensors, prompt: str, layout: str, slots: tuple[int, int]
    ) -> PromptRow:
        import torch

        text = layouts.question_text(prompt, layout)
        special = (self.checkpoint.config["bos_token_id"], self.pad_id)
        laid_out = layouts.build(self._encode, text, layout, *slots, special)
        return PromptRow(
            features,
            {
                "input_ids": torch.tensor(laid_out.input_ids),
                "token_type_ids": torch.tensor(laid_out.token_type_ids),
            },
        )

    def slots(self, row: PromptRow) -> Tensor:
        """Say of each token whether a row of a frame stands in its place. bool [L]."""
        return row.sequences["token_type_ids"].bool()

    def positions(self, row: PromptRow) -> Tensor:
        """Return positions that the inner slots of a frame share. int64 [L]."""
        from cogcache.models.cogvlm2.positions import shared_position_ids

        return shared_position_ids(row.sequences["token_type_ids"][None])[0]

    def feature_levels(self, features: ClipTensors) -> list[list[str]]:
        """Name the one tensor of features."""
        return [[FEATURES]]

    def feature_width(self) -> int:
        """Return the width of the language model, or before the projector that of the encoder."""
        if self.cache_point == "pooled":
            return int(self.checkpoint.config["vision_config"]["hidden_size"])
        return super().feature_width()

    def num_slots(self, features: Tensor) -> int:
        """Return the number of rows; before the projector boi and eoi of each frame besides."""
        around = 2 * len(features) if self.cache_point == "pooled" else 0
        return super().num_slots(features) + around

    def prefix_length(self, row: PromptRow) -> int:
        """Return the number of tokens up to the last feature slot; 0 where there is none."""
        slots = row.sequences["token_type_ids"].nonzero()
        return int(slots.max()) + 1 if len(slots) else 0

    def model_inputs(self, rows: Sequence[PromptRow], model: PreTrainedModel) -> dict[str, Any]:
        """Return ids, types, mask and features; the last as one list over the rows."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        device = model.device
        names = rows[0].sequences
        fills = {"input_ids": self.pad_id, "token_type_ids": 0}
        inputs: dict[str, Any] = {
            name: left_padded([row.sequences[name] for row in rows], fills[name]).to(device)
            for name in names
        }
        ones = [torch.ones(row.length) for row in rows]
        inputs["attention_mask"] = left_padded(ones, 0).to(device)
        if not rows[0].features.tensors:
            return inputs
        features = [row.features.tensors[FEATURES].to(device) for row in rows]
        inputs["mm_encoder_outputs"] = {"video": BaseModelOutputWithPooling(pooler_output=features)}
        return inputs

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def tokenizer_json(self) -> str:
        """Return the tokenizer as it lies in the checkpoint."""
        text: str = self._tokenizer.to_str()
        return text

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-text token; the templates know no other."""
        eos = self.checkpoint.config["eos_token_id"]
        found = tuple(eos) if isinstance(eos, list) else (eos,)
        check_ids(found, self.checkpoint.folder)
        return found

    @property
    def pad_id(self) -> int:
        """The padding token, which also fills the feature slots."""
        pad: int = self.checkpoint.config["pad_token_id"]
        check_ids([pad], self.checkpoint.folder)
        return pad

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        path = self.checkpoint.folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", "fetch tokenizer.json into that folder")
        check_tokenizer(self.checkpoint.folder)
        with blamed_on(self.checkpoint.folder):
            return Tokenizer.from_file(str(path))
