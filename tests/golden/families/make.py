"""Make a family's golden with the release of transformers that it was published with.

    PYTHONPATH=RELEASE:tests/support python tests/golden/families/make.py FAMILY OUT

`pip install --no-deps --target RELEASE transformers==VERSION` fills the folder RELEASE, with the
tokenizers and huggingface_hub that it wants. The checkpoint is that of tests/support/zoo_wide.py,
saved by the release itself; the frames come from a seed. What the release made of them goes into
OUT/FAMILY/golden.safetensors and golden.json; see README.md.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import zoo
import zoo_wide
from safetensors.torch import save, save_file

QUESTION = "What moves here, and where to?"
FPS, SECONDS, HEIGHT, WIDTH = 25.0, 12, 60, 88
TAKEN = (0, 25, 50, 75, 112, 150, 200, 275)
"""Of the frames of a clip of 12 seconds; not evenly, so that times matter."""
FEWER = {"qwen2_5_omni_thinker": (0, 75, 150, 275), "qwen3_omni_moe_thinker": (0, 75, 150, 275)}
"""Where pictures cannot be as small."""
TIED = ("gemma3", "lfm2_vl")
"""Published so, and their first releases save them so whatever is asked."""
NEW_TOKENS = 8
MOST_PIXELS = 4096
"""About as many pixel values are kept, evenly spaced."""
RELEASES = {
    "gemma3": "4.50.3",
    "mistral3": "4.50.3",
    "idefics3": "4.46.3",
    "qwen2_5_omni_thinker": "4.52.4",
    "glm4v_moe": "4.56.2",
    "qwen3_omni_moe_thinker": "4.57.6",
    "qwen3_vl_moe": "4.57.6",
    "lfm2_vl": "4.57.6",
    "ernie4_5_vl_moe": "5.0.0",
    "glm46v": "5.0.0",
    "glm_ocr": "5.1.0",
    "qwen3_5": "5.2.0",
    "qwen3_5_moe": "5.2.0",
    "gemma4": "5.5.4",
    "minicpmv4_6": "5.7.0",
    "exaone4_5": "5.8.1",
    "minimax_m3_vl": "5.12.1",
    "cohere_compass": "5.16.1",
    "minicpmv4_7": "5.18.0",
    "molmo2": "5.20.2",
}
ANIMALS = {
    each.name: each
    for module in (zoo, zoo_wide)
    for each in vars(module).values()
    if isinstance(each, zoo.Animal)
}
TOKENIZERS = {
    "qwen2_5_omni_thinker": "Qwen2TokenizerFast",
    "qwen3_omni_moe_thinker": "Qwen2TokenizerFast",
    "qwen3_vl_moe": "Qwen2TokenizerFast",
    "qwen3_5": "Qwen2Tokenizer",
    "qwen3_5_moe": "Qwen2Tokenizer",
}
NEWER_NAMES = {
    "Lfm2VlImageProcessor": "Lfm2VlImageProcessorFast",
    "Ernie4_5_VLMoeProcessor": "Ernie4_5_VL_MoeProcessor",
    "Ernie4_5_VLMoeImageProcessor": "Ernie4_5_VL_MoeImageProcessor",
    "Ernie4_5_VLMoeVideoProcessor": "Ernie4_5_VL_MoeVideoProcessor",
    "Ernie4_5_VLMoeForConditionalGeneration": "Ernie4_5_VL_MoeForConditionalGeneration",
}
"""Classes by their names of today, and what they were called."""


def frames() -> np.ndarray:
    """Return squares that move over a ground of noise. uint8 [8, 60, 88, 3]."""
    draw = np.random.default_rng(7)
    ground = draw.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    made = []
    for number in TAKEN:
        picture, left = ground.copy(), number * 70 // 300
        picture[10 + left // 2 : 30 + left // 2, left : left + 18] = (230, 60, 40)
        picture[40:55, WIDTH - 20 - left : WIDTH - 5 - left] = (40, 210, 240)
        made.append(picture)
    return np.stack(made)


def older(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the names that transformers had before version 5."""
    if int(transformers.__version__.split(".")[0]) > 4:
        return config
    made = {}
    for name, value in config.items():
        if name == "rope_parameters":
            scaling = dict(value)
            made["rope_theta"] = scaling.pop("rope_theta")
            if "partial_rotary_factor" in scaling:
                made["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
            made["rope_scaling"] = scaling if "mrope_section" in scaling else None
        elif name != "layer_types":  # newer than these releases, which would not heed it
            made[name] = older(value) if isinstance(value, dict) else value
    return made


def adapted(animal: zoo.Animal) -> zoo.Animal:
    """Return the animal as the installed release can make it."""
    config = animal.config

    def written(ids: Any) -> dict[str, Any]:
        told = older(config(ids))
        if animal.name == "qwen3_vl_moe":
            # Newer releases turn the experts of old files round, and tell by their shape: with 32
            # or 64 one of the two matrices would be square, and stay as it is.
            told["text_config"]["moe_intermediate_size"] = 96
        return told

    changed = replace(animal, config=written)
    processor = OWN_PROCESSORS.get(animal.name, animal.processor)
    for newer, name in NEWER_NAMES.items():
        if hasattr(transformers, name) and not hasattr(transformers, newer):
            setattr(transformers, newer, getattr(transformers, name))

    def made(tokenizer: Any, chat_template: str) -> Any:
        return processor(as_class(tokenizer, animal), chat_template)

    if animal.name == "lfm2_vl":
        changed = replace(changed, tokens={**animal.tokens, "image_thumbnail": "<|img_thumbnail|>"})
    return replace(changed, processor=made)


def as_class(tokenizer: Any, animal: zoo.Animal) -> Any:
    """Return the tokenizer as one of the class that the release's processor insists on."""
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    wanted = TOKENIZERS.get(animal.name)
    if wanted is None:
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder, "tokenizer_config.json")
        told = json.loads(path.read_text()) | {"tokenizer_class": wanted}
        path.write_text(json.dumps(told))
        return getattr(transformers, wanted).from_pretrained(folder)


def omni_processor(tokenizer: Any, chat_template: str, name: str = "Qwen2_5OmniProcessor") -> Any:
    sizes = {"min_pixels": 16 * 16, "max_pixels": 64 * 64}
    common = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, **sizes}
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(**common),
        video_processor=transformers.Qwen2VLVideoProcessor(**common),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


def omni_moe_processor(tokenizer: Any, chat_template: str) -> Any:
    return omni_processor(tokenizer, chat_template, "Qwen3OmniMoeProcessor")


def lfm2_processor(tokenizer: Any, chat_template: str) -> Any:
    """As published: without thumbnails 4.57 makes no room for a picture of one tile."""
    processor = zoo_wide.lfm2_processor(tokenizer, chat_template)
    processor.image_processor.use_thumbnail = True
    return processor


OMNI = {"qwen2_5_omni_thinker": omni_processor, "qwen3_omni_moe_thinker": omni_moe_processor}
OWN_PROCESSORS = {**OMNI, "lfm2_vl": lfm2_processor}


def processed(animal: zoo.Animal, processor: Any) -> Any:
    """Run the release's processor as its users do."""
    taken = FEWER.get(animal.name, TAKEN)
    pictures = frames()[[TAKEN.index(each) for each in taken]]
    content = [{"type": "text", "text": QUESTION}]
    count = len(pictures) if not animal.takes_videos else 1
    kind = "video" if animal.takes_videos else "image"
    message = {"role": "user", "content": [{"type": kind}] * count + content}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    text = text[0] if isinstance(text, list) else text
    if not animal.takes_videos:
        return processor(text=[text], images=[list(pictures)], return_tensors="pt")
    video = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    if animal.name in OMNI:
        # qwen_omni_utils gives the frames; the rate is what qwen_vl_utils calls it.
        fps = len(pictures) / (FPS * SECONDS) * FPS
        return processor(text=[text], videos=[list(pictures)], fps=fps, return_tensors="pt")
    from transformers.video_utils import VideoMetadata

    told = VideoMetadata(
        total_num_frames=round(FPS * SECONDS),
        fps=FPS,
        duration=float(SECONDS),
        video_backend="pyav",
        height=HEIGHT,
        width=WIDTH,
        frames_indices=list(taken),
    )
    return processor(
        text=[text],
        videos=[video],
        video_metadata=[told],
        do_sample_frames=False,
        return_tensors="pt",
    )


def decoder_of(model: Any) -> Any:
    """Return the part of the model that reads embeddings."""
    names = ("get_decoder",) if hasattr(model, "get_decoder") else ()
    found = [getattr(model, name)() for name in names]
    found += [part for name, part in model.named_modules() if name.endswith("language_model")]
    found += [part for name, part in model.named_modules() if name.endswith("text_model")]
    found += [model.model] if hasattr(model, "model") else []
    return next(each for each in found if each is not None and not hasattr(each, "lm_head"))


@torch.no_grad()
def run(animal: zoo.Animal, processor: Any, model: Any) -> dict[str, torch.Tensor]:
    """Return what the release makes of the frames, from pixels to tokens."""
    inputs = processed(animal, processor)
    if animal.name != "gemma3":
        inputs.pop("token_type_ids", None)
    seen: list[dict[str, Any]] = []
    decoder = decoder_of(model)
    hook = decoder.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    try:
        made = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        hook.remove()
    ids, pixels = inputs["input_ids"][0], next(k for k in inputs if k.startswith("pixel_values"))
    slots = torch.isin(ids, torch.tensor(slot_ids(animal, processor)))
    embedded = seen[0].get("inputs_embeds")
    flat = inputs[pixels].float().flatten()
    out = {"input_ids": ids.long(), "pixels": flat[:: max(1, len(flat) // MOST_PIXELS)]}
    out["pixels_mean"] = flat.double().mean().float()[None]
    out["features"] = embedded[0][slots].half()
    out["logits"] = torch.cat(made.logits).float()
    out["generated"] = made.sequences[0, -len(made.logits) :].long()
    for name, call in (("positions", seen[0]), ("next_position", seen[1])):
        if (place := call.get("position_ids")) is not None:
            place = place if place.ndim == 3 else place[None].expand(3, -1, -1)
            out[name] = place[-3:, 0].contiguous()
    for name in inputs:
        if "grid" in name or "second" in name:
            out[f"extra.{name}"] = torch.as_tensor(inputs[name])
    return out


def slot_ids(animal: zoo.Animal, processor: Any) -> list[int]:
    """Return the ids of the tokens that features stand in place of."""
    tokens = {
        animal.tokens[name] for name in ("image_token", "video_token") if name in animal.tokens
    }
    if animal.name == "molmo2":
        tokens = {"<im_patch>"}
    if animal.name == "minimax_m3_vl":
        tokens = {"]<]image[>[", "]<]video[>["}
    tokens |= {"<|video|>"} if animal.name == "gemma4" else set()
    return [processor.tokenizer.convert_tokens_to_ids(each) for each in tokens]


def _as_published(checkpoint: Path) -> None:
    """Put what the hub has in one file there: the release saves one part over the other."""
    path = checkpoint / "preprocessor_config.json"
    told = transformers.Qwen2VLImageProcessor.from_pretrained(checkpoint).to_dict()
    sizes = {"min_pixels": 16 * 16, "max_pixels": 64 * 64}
    common = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, **sizes}
    told |= transformers.Qwen2VLImageProcessor(**common).to_dict()
    told |= json.loads(path.read_text()) | {"image_processor_type": "Qwen2VLImageProcessor"}
    path.write_text(json.dumps(told, indent=2) + "\n")


def main(name: str, out: Path) -> None:
    """Write the golden of one family."""
    wanted = RELEASES[name]
    if transformers.__version__ != wanted:
        raise SystemExit(f"{name} wants transformers {wanted}, this is {transformers.__version__}")
    torch.set_num_threads(1)
    folder, animal = out / name, adapted(ANIMALS[name])
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = animal.write(folder / "checkpoint", tied=name in TIED)
    if name in OMNI:
        _as_published(checkpoint)
    cls = getattr(transformers, animal.model)
    half = cls.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    half.save_pretrained(checkpoint)
    model = cls.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    tensors = run(animal, processor, model)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    facts = {
        "family": name,
        "transformers": wanted,
        "torch": torch.__version__.split("+")[0],
        "question": QUESTION,
        "fps": FPS,
        "duration_s": SECONDS,
        "frame_indices": FEWER.get(name, TAKEN),
        "text": processor.tokenizer.decode(tensors["input_ids"].tolist()),
    }
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")
    weights = checkpoint / "model.safetensors"
    (checkpoint / "model.safetensors.xz").write_bytes(lzma.compress(weights.read_bytes()))
    weights.unlink()
    packed = lzma.compress(save({"frames": torch.from_numpy(frames())}))
    (out / "frames.xz").write_bytes(packed)
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    sys.stdout.write(f"{name}: {size / 1e3:.0f} kB, {shapes}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
