"""The whole model in one piece, as others run it: what the two stages are compared with.

`python -m cogcache.selftest.whole_model MODEL VIDEOS…` captions videos one by one with both halves
in memory, unquantised, and prints its peak memory, time and captions as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.generation import generate
from cogcache.models import Checkpoint, ClipTensors, Family, family_of
from cogcache.settings import Settings
from cogcache.system import MemoryMonitor, sample
from cogcache.video import read_clip

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def caption_whole(
    model: PreTrainedModel, family: Family, inputs: ClipTensors, prompt: str, settings: Settings
) -> list[int]:
    """Encode and generate for one clip with one model in memory; return the new tokens."""
    frames_per_batch = settings.vision.frames_per_batch
    (features,) = family.encode(model, [inputs], frames_per_batch)
    row = family.row(features, prompt, family.layout(settings.language))
    (tokens,) = generate(model, family, [row], settings.generation)
    return tokens


def main(arguments: Sequence[str]) -> None:
    """Caption videos with the whole model and print what it took."""
    import torch

    from cogcache.models import WholeModel, load_whole

    settings = Settings(model=arguments[0])
    family = family_of(Checkpoint.open(settings.model))
    captions: dict[str, str] = {}
    with MemoryMonitor() as monitor:
        whole = WholeModel.of(family.checkpoint, **family.config_overrides(settings.language))
        base_bytes = sample().host_bytes
        model = load_whole(whole, dtype=torch.bfloat16)
        for video in arguments[1:]:
            clip = read_clip(Path(video), family.frames_of(settings.sampling), 0.0, None)
            inputs = family.prepare(clip, torch.bfloat16)
            for prompt in settings.prompts.values():
                tokens = caption_whole(model, family, inputs, prompt, settings)
                captions[video] = family.text_of(tokens)
    report: dict[str, Any] = monitor.peak.as_dict()
    report |= {"host_bytes": monitor.peak.host_bytes, "total_s": monitor.timeline[-1].time_s}
    report |= {"base_bytes": base_bytes, "weights_bytes": family.checkpoint.total_bytes}
    sys.stdout.write(json.dumps(report | {"captions": captions}))


if __name__ == "__main__":
    main(sys.argv[1:])
