"""What holds of every family: subclass `ModelFamilyTests`, name an animal, and it is asserted.

The judge is the model in one piece: transformers' `generate` on what the checkpoint's own processor
makes of frames and prompt. Where the installed transformers lays out or counts otherwise than the
release that a family was published with, the reference is given the published ids, positions and
rates too; that those are right, tests/models/test_published.py shows with that release's goldens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.video_utils import VideoMetadata
from zoo import Animal

from cogcache.catalog.catalog import Catalog
from cogcache.generation.decoder import Decoder, can_decode
from cogcache.generation.requests import Request, last_position
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.frame_texts import whole_placeholder
from cogcache.models.derived.positions import GRID, RATE_ALONE
from cogcache.models.derived.positions import left_padded as padded_positions
from cogcache.models.derived.times import FrameTimes
from cogcache.models.family import ClipTensors, Family, PromptRow
from cogcache.models.fitting_features import check_features
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.quantization.layers import Quantization, left_out
from cogcache.models.registry import family_of
from cogcache.models.split import split
from cogcache.settings.settings import Settings
from cogcache.settings.stage_two import Generation, Language
from cogcache.store.store import FeatureStore
from cogcache.training.examples import Chosen, Example, lay_out_one
from cogcache.training.loss import Collator, logits_of, token_losses
from cogcache.video.reading import ClipFrames

FPS = 30.0
NEW_TOKENS = 8
QUESTIONS = ("What is it?", "Tell me how it moves, please.")
CAPTIONS = ("Two cats sleep.", "A red ball rolls away.")
CONVERSATIONS = {
    "words first": [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "video"}]}
    ],
    "system prompt": [
        {"role": "system", "content": [{"type": "text", "text": "You are terse."}]},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]},
    ],
    "several turns": [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A ball."}]},
        {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
    ],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Messages = list[dict[str, Any]]


def claim(label: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Name a test's column in the table of families and claims."""

    def labelled(test: Callable[..., None]) -> Callable[..., None]:
        test.claim = label  # type: ignore[attr-defined]
        return test

    return labelled


def clip(num_frames: int, size: tuple[int, int], seed: int, start_s: int = 0) -> ClipFrames:
    """Return frames of coarse random colours, one a second, from `start_s` of a longer video."""
    colours = np.random.default_rng(seed).integers(0, 2, (num_frames, 2, 2, 3), dtype=np.uint8)
    cell = np.ones((1, size[0] // 2, size[1] // 2, 1), dtype=np.uint8)
    indices = (np.arange(num_frames) + start_s) * int(FPS)
    return ClipFrames(
        frames=np.kron(colours * 255, cell),
        timestamps_s=indices / FPS,
        frame_indices=indices,
        fps=FPS,
        total_num_frames=int(FPS) * 60,
        duration_s=60.0,
        decoder="pyav",
        suspect=None,
    )


def asked(question: str) -> Messages:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@dataclass
class Lab:
    """One animal's checkpoints, halves and wholes, each made when it is first needed."""

    animal: Animal
    root: Path
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    references: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        return self.animal.write(self.root / "untied")

    @cached_property
    def tied_folder(self) -> Path:
        return self.animal.write(self.root / "tied", tied=True)

    @cached_property
    def family(self) -> Family:
        return family_of(Checkpoint.open(str(self.folder)))

    @cached_property
    def whole(self) -> WholeModel:
        return WholeModel.of(self.family.checkpoint)

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder)

    @cached_property
    def clips(self) -> tuple[ClipFrames, ClipFrames]:
        first, second = self.animal.frames
        return clip(first, self.animal.size, 1), clip(second, self.animal.other_size, 2, 7)

    def half(self, half: str, dtype: str = "float32") -> PreTrainedModel:
        if (half, dtype) not in self.loaded:
            self.loaded[half, dtype] = load_half(self.whole, half, dtype=DTYPES[dtype])
        return self.loaded[half, dtype].model

    def monolith(self, dtype: str = "float32") -> PreTrainedModel:
        if ("whole", dtype) not in self.loaded:
            self.loaded["whole", dtype] = load_whole(self.whole, dtype=DTYPES[dtype])
        return self.loaded["whole", dtype]

    def processed(self, frames: ClipFrames, messages: Messages) -> dict[str, Tensor]:
        return self.processed_together([(frames, messages)])

    def processed_together(self, pairs: Sequence[tuple[ClipFrames, Messages]]) -> dict[str, Tensor]:
        """Run the processor as its own documentation says."""
        arguments: dict[str, Any] = {"padding": True} if len(pairs) > 1 else {}
        clips = [frames for frames, _ in pairs]
        if self.animal.takes_videos:
            arguments["videos"] = [frames.frames for frames in clips]
            arguments["do_sample_frames"] = False
            arguments["video_metadata"] = [metadata(frames) for frames in clips]
            conversations = [messages for _, messages in pairs]
        else:
            arguments["images"] = [list(frames.frames) for frames in clips]
            conversations = [with_images(messages, len(f.frames)) for f, messages in pairs]
        texts = [
            self.processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
            for each in conversations
        ]
        texts = [whole_placeholder(text, self.processor) for text in texts]
        inputs = dict(self.processor(text=texts, return_tensors="pt", **arguments))
        return inputs | self.published(inputs, clips)

    def published(
        self, inputs: dict[str, Tensor], clips: Sequence[ClipFrames]
    ) -> dict[str, Tensor]:
        """Return positions and rates as they were published, where the family has such."""
        rule = getattr(self.family, "position_rule", None)
        if rule is None:
            rate, seconds = RATE_ALONE.get(self.animal.name), self._seconds(clips)
            return {rate: torch.tensor(seconds)} if rate in inputs else {}
        given = {name: inputs[name] for name in (GRID, rule.rate) if name in inputs}
        if rule.rate in given:
            given[rule.rate] = torch.tensor(self._seconds(clips))
        places = []
        for index, mask in enumerate(inputs["attention_mask"].bool()):
            own = {f"extra.{name}": each[index : index + 1] for name, each in given.items()}
            ids = {"input_ids": inputs["input_ids"][index][mask]}
            places.append(self.family.positions(PromptRow(ClipTensors(own), ids)))
        return given | {"position_ids": padded_positions(places)}

    def _seconds(self, clips: Sequence[ClipFrames]) -> list[float]:
        """Return the published seconds from one row of patches to the next, of each clip."""
        return [2 / FrameTimes.of_clip(each).sampled_fps for each in clips]

    def processed_words(self, question: str) -> dict[str, Tensor]:
        """Run the processor on a prompt about nothing."""
        messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        words_only = self.processor.tokenizer if self.animal.name == "internvl" else self.processor
        return dict(words_only(text=[text], return_tensors="pt"))

    def reference(
        self, clip_index: int, question: str, dtype: str = "float32", **options: Any
    ) -> list[int]:
        """Return the tokens of the model in one piece."""
        key = (clip_index, question, dtype, *options.items())
        if key not in self.references:
            inputs = self.processed(self.clips[clip_index], asked(question))
            self.references[key] = generated(self.monolith(dtype), inputs, **options)[0]
        return self.references[key]

    def in_batch(self, pairs: Sequence[tuple[int, str]], dtype: str) -> list[list[int]]:
        """Return the tokens of the model in one piece on a batch that its processor made."""
        inputs = self.processed_together([(self.clips[i], asked(text)) for i, text in pairs])
        return generated(self.monolith(dtype), inputs)

    def features(self, frames: ClipFrames, dtype: str = "float32") -> ClipTensors:
        """Run stage one."""
        prepared = self.family.prepare(frames, DTYPES[dtype])
        return self.family.encode(self.half("vision", dtype), [prepared], 48)[0]

    def captioned(
        self,
        pairs: Sequence[tuple[ClipTensors, str]],
        model: PreTrainedModel,
        **options: Any,
    ) -> list[list[int]]:
        """Run stage two on clips with a question each."""
        rows = [self.family.row(features, question, "") for features, question in pairs]
        return generated(model, self.family.model_inputs(rows, model), **options)


def metadata(frames: ClipFrames) -> VideoMetadata:
    """Describe frames that were taken one a second."""
    return VideoMetadata(
        total_num_frames=len(frames.frames) * int(FPS),
        fps=FPS,
        duration=frames.duration_s,
        frames_indices=frames.frame_indices.tolist(),
    )


def with_images(messages: Messages, count: int) -> Messages:
    changed = []
    for message in messages:
        parts: list[dict[str, str]] = []
        for part in message["content"]:
            parts += [{"type": "image"}] * count if part["type"] == "video" else [part]
        changed.append({**message, "content": parts})
    return changed


def generated(model: PreTrainedModel, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    """Return the new tokens of each row; no end token stops them."""
    pixels = {n: t.to(model.dtype) for n, t in inputs.items() if n.startswith("pixel_values")}
    made = model.generate(
        **inputs | pixels,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
        **options,
    )
    return made[:, inputs["input_ids"].shape[1] :].tolist()


def equal_tensors(found: ClipTensors, wanted: ClipTensors) -> bool:
    return found.texts == wanted.texts and (
        {name: (t.dtype, t.shape) for name, t in found.tensors.items()}
        == {name: (t.dtype, t.shape) for name, t in wanted.tensors.items()}
        and all(torch.equal(found.tensors[name], t) for name, t in wanted.tensors.items())
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.usefixtures("products_as_torch_takes_them")
class ModelFamilyTests:
    """The contract. A subclass says `animal = ...` and nothing else."""

    animal: Animal

    @pytest.fixture(scope="class")
    @classmethod
    def lab(cls, tmp_path_factory) -> Lab:
        return Lab(cls.animal, tmp_path_factory.mktemp(cls.animal.name))

    @pytest.fixture(autouse=True)
    def in_table(self, request, record_property) -> None:
        record_property("family", self.animal.name)
        record_property("claim", request.function.claim)

    @claim("halves")
    def test_the_halves_partition_the_checkpoint(self, lab):
        parts = lab.whole.partition
        names = [*parts.vision, *parts.language, *parts.shared, *parts.dropped]
        with safe_open(lab.folder / "model.safetensors", framework="pt") as file:
            assert sorted(names) == sorted(file.keys())
        assert parts.vision
        assert parts.language
        assert not parts.dropped
        sizes = [lab.family.checkpoint.tensors([name])[name] for name in parts.shared]
        assert all(len(each.shape) == 1 for each in sizes), "only loose vectors may be shared"

    @claim("halves")
    @pytest.mark.parametrize("half", ["vision", "language"])
    def test_a_half_holds_its_own_tensors_and_no_others(self, lab, half):
        parts = lab.whole.partition
        tensors, weights = lab.half(half).state_dict(), lab.monolith().state_dict()
        assert {parts.modules.half_of(name) for name in tensors} <= {half, None}
        # A fused tensor of the checkpoint fills several parameters; the map names the first.
        assert {parts.targets[name] for name in parts.names(half)} <= {*tensors}
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights[name]), name

    @claim("sdpa")
    @pytest.mark.parametrize("half", ["vision", "language"])
    def test_attention_is_torchs_own(self, lab, half):
        parts = [m for m in lab.half(half).modules() if isinstance(m, PreTrainedModel)]
        assert {part.config._attn_implementation for part in parts} == {"sdpa"}

    @claim("prompt")
    @pytest.mark.parametrize("clip_index", [0, 1])
    def test_prompts_without_pixels_are_the_processors_own(self, lab, clip_index):
        frames = lab.clips[clip_index]
        features = lab.features(frames)
        for question in QUESTIONS:
            self.assert_same_prompt(lab, frames, features, asked(question), question)

    @claim("layouts")
    @pytest.mark.parametrize("kind", CONVERSATIONS)
    def test_conversations_keep_the_form_of_the_chat_template(self, lab, kind):
        messages = CONVERSATIONS[kind]
        features = lab.features(lab.clips[1])
        self.assert_same_prompt(lab, lab.clips[1], features, messages, as_prompt(messages))

    def assert_same_prompt(self, lab, frames, features, messages, prompt):
        wanted = lab.processed(frames, messages)
        row = lab.family.row(features, prompt, "")
        given = lab.family.model_inputs([row], lab.half("language"))
        texts = [n for n, t in wanted.items() if t.shape == wanted["input_ids"].shape]
        assert {"input_ids", "attention_mask"} <= {*texts}
        for name in texts:
            assert torch.equal(given[name], wanted[name]), name

    @claim("times")
    def test_times_are_those_of_the_whole_video(self, lab):
        if not self.animal.times:
            pytest.skip("its prompts hold no times")
        prepared = lab.family.prepare(lab.clips[1], torch.float32)
        for time in self.animal.times:
            assert time in prepared.texts["replacements"]

    @claim("single")
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("clip_index", [0, 1])
    def test_tokens_from_the_cache_are_the_whole_models(self, lab, clip_index, dtype):
        features = lab.features(lab.clips[clip_index], dtype)
        language = lab.half("language", dtype)
        for question in QUESTIONS:
            [tokens] = lab.captioned([(features, question)], language)
            assert tokens == lab.reference(clip_index, question, dtype)

    @claim("distinct")
    def test_other_clips_and_other_prompts_give_other_tokens(self, lab):
        """Otherwise equal tokens would say nothing."""
        tokens = {tuple(lab.reference(index, text)) for index in (0, 1) for text in QUESTIONS}
        assert len(tokens) == 4

    @claim("batch")
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_left_padded_batch_gives_each_clip_its_own_tokens(self, lab, dtype):
        features = [lab.features(frames, dtype) for frames in lab.clips]
        pairs = [(index, question) for index in (0, 1) for question in QUESTIONS]
        tokens = lab.captioned([(features[i], q) for i, q in pairs], lab.half("language", dtype))
        alone = [lab.reference(index, question, dtype) for index, question in pairs]
        # In bfloat16 the model in one piece does not give the same in a batch and alone, either.
        assert tokens == alone or (dtype == "bfloat16" and tokens == lab.in_batch(pairs, dtype))

    @claim("shared")
    def test_prompts_of_a_clip_share_its_prefill(self, lab):
        language = lab.half("language")
        if not can_decode(language):
            pytest.skip("its layers do not keep all keys")
        groups = []
        for index, frames in enumerate(lab.clips):
            features = lab.features(frames)
            rows = {text: lab.family.row(features, text, "") for text in QUESTIONS}
            greedy = Generation(max_new_tokens=NEW_TOKENS)
            groups.append(
                [Request(row, str(index), 0, greedy, (index, q)) for q, row in rows.items()]
            )
        decoder = Decoder(language, lab.family, 3)
        for made in decoder.run(groups):
            # The reference goes on behind what would end a caption.
            assert made.tokens == lab.reference(*made.request.task)[: len(made.tokens)]
        assert decoder.statistics.prefixes == len(groups)

    @claim("shared")
    def test_a_system_prompt_is_run_once_for_all_clips(self, lab):
        language = lab.half("language")
        if not can_decode(language):
            pytest.skip("its layers do not keep all keys")
        greedy = Generation(max_new_tokens=NEW_TOKENS)
        prompt = as_prompt(CONVERSATIONS["system prompt"])
        features = [lab.features(frames) for frames in lab.clips]
        rows = [lab.family.row(each, prompt, "") for each in features]
        decoder = Decoder(language, lab.family, 3)
        groups = [[Request(row, str(i), 0, greedy, i)] for i, row in enumerate(rows)]
        for made in decoder.run(groups):
            [alone] = lab.captioned([(features[made.request.task], prompt)], language)
            assert made.tokens == alone[: len(made.tokens)]
        assert decoder.statistics.heads == min(1, lab.family.head_length(rows[0]))

    @claim("text")
    def test_words_alone_give_the_tokens_of_the_whole_model(self, lab):
        """As a summary of captions does, after a clip has left its traces in the model."""
        language = lab.half("language")
        lab.captioned([(lab.features(lab.clips[0]), QUESTIONS[0])], language)
        wanted = [generated(lab.monolith(), lab.processed_words(text))[0] for text in QUESTIONS]
        assert len({*map(tuple, wanted)}) == len(QUESTIONS)
        rows = [lab.family.text_row(text, "") for text in QUESTIONS]
        for row, tokens in zip(rows, wanted, strict=True):
            assert generated(language, lab.family.model_inputs([row], language)) == [tokens]
        assert generated(language, lab.family.model_inputs(rows, language)) == wanted
        if can_decode(language):
            greedy = Generation(max_new_tokens=NEW_TOKENS)
            groups = [[Request(row, str(n), 0, greedy, n)] for n, row in enumerate(rows)]
            for made in Decoder(language, lab.family, 2).run(groups):
                assert made.tokens == wanted[made.request.task][: len(made.tokens)]

    @claim("learns")
    def test_the_loss_on_captions_is_that_of_the_whole_model(self, lab):
        """Given the processor's own ids and pixels, and the positions that were published."""
        features = [lab.features(frames) for frames in lab.clips]
        examples = [
            lay_out_one(as_chosen(question, caption), lab.family, clip, "")
            for question, caption, clip in zip(QUESTIONS, CAPTIONS, features, strict=True)
        ]
        half = lab.half("language")
        batch = Collator(lab.family, half, None).laid_out(examples, features)
        with torch.inference_mode():
            losses = token_losses(logits_of(half, batch), batch.labels).sum(dim=1)
        for index, example in enumerate(examples):
            processed = lab.processed(lab.clips[index], asked(QUESTIONS[index]))
            wanted = whole_loss(lab.monolith(), processed, example)
            assert float(losses[index]) / example.num_labels == pytest.approx(wanted, rel=1e-5)

    @claim("2nd clip")
    def test_a_clip_is_not_affected_by_the_one_before(self, lab):
        features = [lab.features(frames) for frames in lab.clips]
        for index in (0, 1, 0):
            [tokens] = lab.captioned([(features[index], QUESTIONS[0])], lab.half("language"))
            assert tokens == lab.reference(index, QUESTIONS[0])

    @claim("file")
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_features_survive_the_file(self, lab, tmp_path, dtype):
        features = lab.features(lab.clips[0], dtype)
        store = FeatureStore.create_or_open(tmp_path / "cache")
        store.write("0" * 64, features.tensors, {"texts": dict(features.texts)})
        stored = store.read("0" * 64)
        texts = {name: str(text) for name, text in stored.attributes["texts"].items()}
        assert equal_tensors(ClipTensors(stored.tensors, texts), features)
        own = [t.untyped_storage().nbytes() == t.nbytes for t in features.tensors.values()]
        assert all(own), "a view would take all that it is a part of into the file"

    @claim("size")
    def test_what_will_be_cached_is_known_before_encoding(self, lab):
        for frames in lab.clips:
            prepared = lab.family.prepare(frames, torch.bfloat16)
            expected = lab.family.expected(prepared, torch.bfloat16).tensors
            found = lab.features(frames, "bfloat16").tensors
            assert sum(t.nbytes for t in expected.values()) == sum(t.nbytes for t in found.values())
            extras = {name for name in found if name.startswith("extra.")}
            assert {name for name in expected if name.startswith("extra.")} == extras
            layout = lab.family.layout(Language())
            check_features(lab.family, lab.features(frames, "bfloat16"), layout)

    @claim("together")
    def test_clips_encoded_together_are_as_encoded_alone(self, lab):
        prepared = [lab.family.prepare(frames, torch.float32) for frames in lab.clips]
        together = lab.family.encode(lab.half("vision"), prepared, 48)
        for found, frames in zip(together, lab.clips, strict=True):
            assert equal_tensors(found, lab.features(frames))

    @claim("key")
    def test_the_features_are_what_the_tokens_come_from(self, lab):
        """Features under a wrong key would be passed over without a word."""
        features = lab.features(lab.clips[0])
        empty = {
            name: torch.zeros_like(t) if t.is_floating_point() and "extra" not in name else t
            for name, t in features.tensors.items()
        }
        language = lab.half("language")
        blank = ClipTensors(empty, features.texts)
        [tokens] = lab.captioned([(blank, QUESTIONS[0])], language)
        assert tokens != lab.reference(0, QUESTIONS[0])

    @claim("beams")
    def test_beams_do_not_write_into_cached_features(self, lab):
        features = lab.features(lab.clips[0])
        kept = ClipTensors({n: t.clone() for n, t in features.tensors.items()}, features.texts)
        pair = [(features, QUESTIONS[0])]
        if self.animal.beams == "both":
            tokens = lab.captioned(pair, lab.half("language"), num_beams=2)
            assert tokens == [lab.reference(0, QUESTIONS[0], num_beams=2)]
        else:
            with pytest.raises((RuntimeError, ValueError)):
                lab.reference(0, QUESTIONS[0], num_beams=2)
        if self.animal.beams == "cache":
            assert lab.captioned(pair, lab.half("language"), num_beams=2)
        if self.animal.beams == "neither":
            with pytest.raises((RuntimeError, ValueError)):
                lab.captioned(pair, lab.half("language"), num_beams=2)
        assert equal_tensors(features, kept)
        assert lab.captioned(pair, lab.half("language")) == [lab.reference(0, QUESTIONS[0])]
        if self.animal.beams == "neither":
            pytest.skip("transformers cannot run its class with beams")

    @claim("tied")
    def test_a_tied_output_head_is_not_left_random(self, lab):
        if not self.animal.ties:
            pytest.skip("its class never ties")
        tied = Lab(lab.animal, lab.root / "of the tied")
        tied.folder = lab.tied_folder
        assert "lm_head.weight" not in tied.family.checkpoint.weight_map
        features = tied.features(tied.clips[0])
        [tokens] = tied.captioned([(features, QUESTIONS[0])], tied.half("language"))
        assert tokens == tied.reference(0, QUESTIONS[0])

    @claim("nf4")
    def test_nf4_of_the_language_half_alone(self, lab, record_property):
        loaded = load_half(lab.whole, "language", quantization=Quantization())
        record_property("note", f"{loaded.quantization.share:.0%}")
        features = lab.features(lab.clips[0], "bfloat16")
        [tokens] = lab.captioned([(features, QUESTIONS[0])], loaded.model)
        inputs = lab.processed(lab.clips[0], asked(QUESTIONS[0]))
        assert tokens == generated(quantized_whole(lab), inputs)[0]

    @claim("split")
    def test_halves_from_a_split_are_those_of_the_original(self, lab, tmp_path):
        folder = lab.tied_folder if self.animal.ties else lab.folder
        split(str(folder), tmp_path / "split", Settings(language={"quantization": "nf4"}))
        found, wanted = (family_of(Checkpoint.open(str(f))) for f in (tmp_path / "split", folder))
        assert found.preprocessing() == wanted.preprocessing()
        assert found.layout(Language()) == wanted.layout(Language())
        for half, quantization in (("vision", None), ("language", Quantization())):
            models = [
                load_half(WholeModel.of(family.checkpoint), half, quantization=quantization).model
                for family in (found, wanted)
            ]
            ours, theirs = ({**m.state_dict(), **dict(m.named_buffers())} for m in models)
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype
                assert torch.equal(ours[name], tensor), name
            with Catalog(tmp_path / f"{half}.sqlite") as catalog:
                assert identify(found, half, catalog.files) == identify(wanted, half, catalog.files)


def quantized_whole(lab: Lab) -> PreTrainedModel:
    """Load the model in one piece, its decoder in 4 bits and its vision part as it is."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=left_out(lab.whole.meta),
    )
    model = lab.whole.cls.from_pretrained(
        lab.folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    return model.eval()


def as_chosen(question: str, caption: str) -> Chosen:
    return Chosen("key", "features", "video", "a clip", "default", question, caption)


def whole_loss(model: PreTrainedModel, processed: dict[str, Tensor], example: Example) -> float:
    """Return the loss that a model in one piece gives of a caption behind a processor's prompt."""
    ids, published = processed["input_ids"], processed.get("position_ids")
    assert torch.equal(ids[0], example.sequences["input_ids"][: ids.shape[1]])
    answer = torch.tensor([example.answer])
    behind = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    inputs = {
        name: torch.cat((each, behind.get(name, torch.zeros_like(answer))), dim=1)
        if each.shape == ids.shape
        else each
        for name, each in processed.items()
        if name != "position_ids"
    }
    labels = inputs["input_ids"].clone()
    labels[:, : ids.shape[1]] = -100
    if published is None:
        others = {name: each for name, each in inputs.items() if name != "input_ids"}
        positions = model._prepare_position_ids_for_generation(inputs["input_ids"], others)
    else:
        ahead = last_position(published) + torch.arange(1, answer.shape[1] + 1)
        positions = torch.cat((published, ahead), dim=-1)
    with torch.inference_mode():
        output = model(**inputs, position_ids=positions, labels=labels, use_cache=False)
    return float(output.loss)


def as_prompt(messages: Messages) -> str:
    import json

    return json.dumps(messages)
