"""The whole model in one piece, by any release of transformers: a program that stands alone.

    PYTHON reference.py FOLDER

It imports torch, transformers, numpy and safetensors, and nothing of cogcache, so that it runs in
an environment of the release that a family was published with. FOLDER holds job.json and the frames
of each clip (CLIP.frames.safetensors); it gets CLIP.reference.safetensors and reference.json.
Weights are read from safetensors alone, and code of a checkpoint is never run.

`recorded` is imported by the two stages too: both sides are read off in the same way.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = "reference.json"
MOST_PIXELS = 1 << 22
"""About this many pixel values of a clip are kept, evenly spaced."""
TYPED = ("gemma3",)
"""Families that want `token_type_ids`; some tokenizers give them unasked."""
FAILED = 3
"""Exit status where the release cannot run the checkpoint; reference.json says why."""


def numbers(version: str) -> tuple[int, int]:
    """Return major and minor version as numbers."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class Clip:
    """One clip: frames uint8 [T, H, W, 3], and what a release may want to know of them."""

    def __init__(self, frames: Any, facts: Mapping[str, Any]) -> None:
        self.frames = frames
        self.indices: Sequence[int] = list(facts["frame_indices"])
        self.fps = facts["fps"]
        self.total = facts["total_num_frames"]
        self.duration_s = facts["duration_s"]

    def channels_first(self) -> Any:
        """Return the frames as a tensor [T, 3, H, W]."""
        import torch

        return torch.from_numpy(self.frames.transpose(0, 3, 1, 2).copy())

    def metadata(self) -> Any:
        """Return what the releases call metadata of a video."""
        try:
            from transformers.video_utils import VideoMetadata
        except ImportError:
            from transformers.image_utils import VideoMetadata
        told = {
            "total_num_frames": self.total,
            "fps": self.fps,
            "duration": self.duration_s,
            "video_backend": "pyav",
        }
        made = VideoMetadata(**told)
        made.frames_indices = self.indices
        return made

    @property
    def rate(self) -> float:
        """Frames taken a second, as the authors of Qwen2.5-VL count them (`qwen_vl_utils`)."""
        return float(len(self.indices) / self.total * self.fps)


def in_a_list(clip: Clip) -> dict[str, Any]:
    """Return a clip as a list of its frames, as most of the first releases take it."""
    return {"videos": [list(clip.frames)], "padding": True}


FORMS: Mapping[str, Callable[[Clip], dict[str, Any]]] = {
    "qwen2_5_vl": lambda clip: {**in_a_list(clip), "fps": [clip.rate]},
    "qwen2_5_omni_thinker": lambda clip: {"videos": [list(clip.frames)], "fps": clip.rate},
    "glm4v": lambda clip: {
        "videos": [clip.channels_first()],
        "video_metadata": [[clip.metadata()]],
        "padding": True,
    },
    "internvl": lambda clip: {"videos": [clip.channels_first()]},
    "llava_onevision": lambda clip: {"videos": list(clip.frames)},
    "llava_next_video": lambda clip: {"videos": clip.frames, "padding": True},
    "video_llava": lambda clip: {"videos": clip.frames, "padding": True},
}
"""How a family's first release is given a clip; from 4.56 on all take the same arguments."""


def load_processor(checkpoint: Path, scratch: Path) -> Any:
    """Load a checkpoint's processor; settings that came after the release are left out."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(checkpoint)
    except TypeError as error:
        settings = checkpoint / "processor_config.json"
        if "unexpected keyword argument" not in str(error) or not settings.is_file():
            raise
    copy = scratch / "processor"
    copy.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix in SMALL and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, copy / path.name)
    told = json.loads(settings.read_text())
    (copy / settings.name).write_text(json.dumps(known_settings(told)))
    return AutoProcessor.from_pretrained(copy)


SMALL = (".json", ".jinja", ".txt", ".model")
"""What the files of a processor and its tokenizer end in."""


def known_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a processor that its class of this release takes."""
    import transformers

    cls = getattr(transformers, told["processor_class"])
    taken = {*inspect.signature(cls.__init__).parameters, "processor_class"}
    return {name: value for name, value in told.items() if name in taken}


class Release:
    """A checkpoint in the installed release of transformers."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        import transformers

        self.version = numbers(transformers.__version__)
        self.family, self.job = job["family"], job
        self.processor = load_processor(Path(job["checkpoint"]), Path(job["folder"]))

    def model(self) -> Any:
        """Load the whole model."""
        import torch
        import transformers

        name = "dtype" if self.version >= (4, 56) else "torch_dtype"
        options = {name: getattr(torch, self.job["dtype"]), "use_safetensors": True}
        if self.job["device_map"] is not None:
            limits = {int(k) if k.isdigit() else k: v for k, v in self.job["max_memory"].items()}
            options["device_map"], options["max_memory"] = self.job["device_map"], limits or None
            options["offload_folder"] = str(Path(self.job["folder"], "offload"))
        cls = getattr(transformers, self.job["architecture"])
        return cls.from_pretrained(self.job["checkpoint"], **options).eval()

    def text(self, question: str, num_frames: int) -> str:
        """Lay out a question by the checkpoint's chat template, or in its family's usual form."""
        if not self.has_template():
            form = self.job["usual_form"]
            if form is None:
                raise ValueError("the checkpoint has no chat template")
            return str(form.format(video="<video>", prompt=question))
        conversation = self.conversation(question, num_frames)
        text = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        return str(text[0] if isinstance(text, list) else text)

    def has_template(self) -> bool:
        """Say whether there is a chat template."""
        owners = (self.processor, self.processor.tokenizer)
        return any(getattr(owner, "chat_template", None) for owner in owners)

    def conversation(self, question: str, num_frames: int) -> list[dict[str, Any]]:
        """Return a question about a video, or about its frames one by one."""
        kind = "image" if self.job["takes_images"] else "video"
        parts = [{"type": kind}] * (num_frames if kind == "image" else 1)
        return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]

    def processed(self, clip: Clip, question: str) -> Any:
        """Run the processor over a clip and a question, as its own users did."""
        if self.family == "smolvlm" and self.version < (4, 56):
            return self.by_template(clip, question)
        text = self.text(question, len(clip.frames))
        bos = self.processor.tokenizer.bos_token
        more = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        if self.job["takes_images"]:
            images = [list(clip.frames)]
            return self.processor(text=[text], images=images, return_tensors="pt", **more)
        with self.telling_the_frames(clip):
            videos = self.videos(clip)
            return self.processor(text=[text], return_tensors="pt", **videos, **more)

    def videos(self, clip: Clip) -> dict[str, Any]:
        """Return the arguments that a clip is given in: they changed from release to release."""
        if self.version >= (4, 56):
            told = {"video_metadata": [clip.metadata()], "do_sample_frames": False}
            return {"videos": [clip.channels_first()], **told}
        return FORMS.get(self.family, in_a_list)(clip)

    @contextlib.contextmanager
    def telling_the_frames(self, clip: Clip) -> Iterator[None]:
        """Have GLM's processor of 4.53, which always samples, take the frames that it is given."""
        video: Any = getattr(self.processor, "video_processor", None)
        if self.family != "glm4v" or self.version >= (4, 56):
            yield
            return
        seconds = [int(index / clip.fps) for index in clip.indices][::2]
        video.sample_frames = lambda frames, metadata: (frames, seconds)
        try:
            yield
        finally:
            del video.sample_frames

    def by_template(self, clip: Clip, question: str) -> Any:
        """Let a release that reads videos itself lay out and process; it is given the frames."""
        from transformers import processing_utils

        conversation = self.conversation(question, len(clip.frames))
        conversation[0]["content"][0] = {"type": "video", "path": "the clip"}
        reader = processing_utils.load_video
        processing_utils.load_video = lambda *_, **__: (clip.frames, clip.metadata())
        try:
            return self.processor.apply_chat_template(
                conversation,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        finally:
            processing_utils.load_video = reader


def decoder_of(model: Any) -> Any:
    """Return the part of a model that reads embeddings."""
    found = [model.get_decoder()] if hasattr(model, "get_decoder") else []
    named = list(model.named_modules())
    found += [part for name, part in named if name.endswith(("language_model", "text_model"))]
    found += [model.model] if hasattr(model, "model") else []
    fitting = [each for each in found if each is not None and not hasattr(each, "lm_head")]
    return next(each for each in fitting if each is not model)


def recorded(
    model: Any, inputs: Mapping[str, Any], is_slot: Any, new_tokens: int
) -> dict[str, Any]:
    """Generate greedily, and return what the decoder was given and what it said.

    Args:
        model: the whole model, or its language half.
        inputs: what its `generate` takes; `input_ids` int64 [1, L].
        is_slot: whether features stand in a token's place. bool [L].
        new_tokens: how many are generated; nothing ends a text before.

    Returns:
        `input_ids` [L], `logits` [new_tokens, V] and `tokens` [new_tokens]; `positions` [3, L],
        `next_position` [3, 1] and `features` [slots, D] where the decoder is given them.
    """
    import torch

    seen = []
    hook = decoder_of(model).register_forward_pre_hook(
        lambda module, positional, named: seen.append(named), with_kwargs=True
    )
    try:
        with torch.no_grad():
            made = model.generate(
                **inputs,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                return_dict_in_generate=True,
                **{RAW: True},
            )
    finally:
        hook.remove()
    raw = made[RAW.removeprefix("output_")]
    out = {"logits": torch.cat([each[:1] for each in raw]).float()}
    out["tokens"] = made.sequences[0, -len(raw) :].long()
    out["input_ids"] = inputs["input_ids"][0].long()
    if seen[0].get("inputs_embeds") is not None:
        out["features"] = at_slots(seen[0]["inputs_embeds"][0], is_slot).float()
    for name, call in (("positions", seen[0]), ("next_position", seen[1])):
        place = call.get("position_ids")
        if place is not None:
            out[name] = (place if place.ndim == 3 else place[None].expand(3, -1, -1))[-3:, 0]
    return {name: each.detach().cpu().contiguous() for name, each in out.items()}


RAW = "output_logits"
"""What `generate` is asked for; releases before 4.38 have scores alone."""


def at_slots(embedded: Any, is_slot: Any) -> Any:
    """Return the rows that features fill; some releases made room for them in the model."""
    if len(embedded) == len(is_slot):
        return embedded[is_slot.to(embedded.device)]
    first, last = int(is_slot.nonzero()[0]), int(is_slot.nonzero()[-1])
    return embedded[first : len(embedded) - (len(is_slot) - 1 - last)]


def pixels_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return pixel values, their mean and their number, as they are compared."""
    import torch

    names = [name for name in inputs if name.startswith("pixel_values")]
    flat = inputs[names[0]].float().flatten()
    step = max(1, len(flat) // MOST_PIXELS)
    return {
        "pixels": flat[::step].contiguous(),
        "pixels_mean": flat.double().mean().float()[None],
        "pixels_count": torch.tensor([len(flat)]),
    }


def run(folder: str) -> dict[str, str]:
    """Do a job: write what the release makes of each clip."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    job: dict[str, Any] = json.loads(Path(folder, "job.json").read_text())
    torch.manual_seed(0)
    release = Release(job)
    model = release.model()
    for name, facts in job["clips"].items():
        frames = load_file(Path(folder, name + ".frames.safetensors"))["frames"].numpy()
        inputs = release.processed(Clip(frames, facts), job["question"])
        if release.family not in TYPED:
            inputs.pop("token_type_ids", None)
        found = pixels_of(inputs)
        place = next(model.parameters()).device
        if place.type == "meta":
            place = torch.device("cpu")
        given = {
            key: value.to(place, model.dtype) if key.startswith("pixel_values") else value.to(place)
            for key, value in tensors(inputs).items()
        }
        is_slot = torch.isin(inputs["input_ids"][0], torch.tensor(sorted(job["slot_ids"])))
        found.update(recorded(model, given, is_slot, job["new_tokens"]))
        save_file(found, Path(folder, name + ".reference.safetensors"))
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def tensors(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a processor's outputs as tensors."""
    import torch

    return {name: torch.as_tensor(value) for name, value in inputs.items()}


def main(folder: str) -> int:
    """Run, and write the result; an error is part of the result, not a crash."""
    try:
        result = run(folder)
    except Exception as error:  # noqa: BLE001
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}".strip()[:600]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        result = {"error": text, "place": place}
    Path(folder, RESULT).write_text(json.dumps(result))
    return FAILED if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
