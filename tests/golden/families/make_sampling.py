"""Record which frames a family's release takes of clips of many lengths and rates.

    PYTHONPATH=RELEASE python tests/golden/families/make_sampling.py FAMILY

is run with the release of transformers that RELEASES names, or with qwen-vl-utils for Qwen2; it
adds the family to sampling.json. Where the release fails, null is recorded. Of many frames only
their number and a digest are kept.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RELEASES = {
    "qwen2_vl": "qwen-vl-utils 0.0.14",
    "qwen3_vl": "4.57.6",
    "qwen3_5": "5.2.0",
    "cohere_compass": "5.16.1",
    "glm4v": "4.53.3",
    "glm4v_moe": "4.56.2",
    "glm46v": "5.0.0",
    "glm_ocr": "5.1.0",
    "smolvlm": "4.50.3",
    "internvl": "4.52.4",
    "video_llama_3": "5.0.0",
    "ernie4_5_vl_moe": "5.0.0",
    "molmo2": "5.20.2",
    "gemma4": "5.5.4",
    "minicpmv4_6": "5.7.0",
    "minicpmv4_7": "5.18.0",
}
CLIPS = (
    *((1, 25.0), (2, 25.0), (3, 30.0), (12, 24000 / 1001), (13, 25.0), (16, 12.5), (31, 30.0)),
    *((50, 5.0), (90, 30000 / 1001), (175, 25.0), (250, 24000 / 1001), (719, 24000 / 1001)),
    *((900, 30.0), (901, 30.0), (1500, 25.0), (1700, 25.0), (3600, 60.0), (7777, 30000 / 1001)),
    *((9001, 30.0), (30_000, 25.0), (75_000, 25.0)),
)
"""Frames and frames a second: short ones, odd ones, films; on both sides of each rule's limits."""
MOST = 40
"""So many indices are kept one by one."""
COUNT = 8
"""Asked for where the release leaves the number to its user."""
VIDEO_PROCESSORS = {
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "qwen3_5": "Qwen3VLVideoProcessor",
    "cohere_compass": "CohereCompassVideoProcessor",
    "glm4v_moe": "Glm4vVideoProcessor",
    "glm46v": "Glm46VVideoProcessor",
    "glm_ocr": "Glm46VVideoProcessor",
    "video_llama_3": "VideoLlama3VideoProcessor",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeVideoProcessor",
    "molmo2": "Molmo2VideoProcessor",
    "gemma4": "Gemma4VideoProcessor",
    "minicpmv4_6": "MiniCPMV4_6VideoProcessor",
    "minicpmv4_7": "MiniCPMV4_6VideoProcessor",
}
ASKED = {"video_llama_3": {"fps": 1}}
"""What the authors' examples ask for."""
Rule = Callable[[int, float], Any]


class _Seen:
    """Stands for the pictures of a clip, and tells which of them were taken."""

    def __init__(self, num_frames: int) -> None:
        self.shape = (num_frames,)

    def __getitem__(self, indices: Any) -> Any:
        return indices


def qwen2(num_frames: int, fps: float) -> Any:
    import torch
    from qwen_vl_utils.vision_process import smart_nframes

    count = smart_nframes({}, num_frames, fps)
    return torch.linspace(0, num_frames - 1, count).round().long()


def metadata(num_frames: int, fps: float) -> Any:
    try:
        from transformers.video_utils import VideoMetadata
    except ImportError:  # before 4.52
        from transformers.image_utils import VideoMetadata

    told = {"total_num_frames": num_frames, "fps": fps, "duration": num_frames / fps}
    return VideoMetadata(**told, video_backend="pyav")


def rule_of(family: str) -> Rule:
    """Return what the release calls."""
    import transformers

    if family == "smolvlm":
        from transformers.models.smolvlm.video_processing_smolvlm import smolvlm_sample_indices_fn

        return lambda count, fps: smolvlm_sample_indices_fn(metadata(count, fps), 64, 1, 1)
    if family == "internvl":
        own = transformers.InternVLProcessor.sample_indices_fn
        return lambda count, fps: own(None, metadata(count, fps), num_frames=COUNT)
    if family == "glm4v":
        video = transformers.Glm4vVideoProcessor()
        return lambda count, fps: video.sample_frames(_Seen(count), metadata(count, fps))[0]
    name = VIDEO_PROCESSORS[family]
    if not hasattr(transformers, name):
        name = name.replace("VLMoe", "VL_Moe")
    video = getattr(transformers, name)()
    names = ("min_frames", "max_frames", "num_frames", "fps", "max_fps", "temporal_patch_size")
    names += ("max_num_frames", "stack_frames")
    told = {each: value for each in names if (value := getattr(video, each, None)) is not None}
    told = {key: value for key, value in told.items() if key in ("min_frames", "max_frames")}
    told |= ASKED.get(family, {})
    return lambda count, fps: video.sample_frames(metadata=metadata(count, fps), **told)


def recorded(rule: Rule, num_frames: int, fps: float) -> Any:
    """Return what is kept of one clip."""
    try:
        indices = [int(index) for index in np.asarray(rule(num_frames, fps))]
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError):
        return None
    if len(indices) <= MOST:
        return indices
    text = ",".join(map(str, indices))
    return {"count": len(indices), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def main(family: str) -> None:
    """Add a family to sampling.json."""
    wanted = RELEASES[family]
    if family != "qwen2_vl":
        import transformers

        if transformers.__version__ != wanted:
            raise SystemExit(f"{family} wants {wanted}, this is {transformers.__version__}")
    rule = qwen2 if family == "qwen2_vl" else rule_of(family)
    frames = [recorded(rule, *clip) for clip in CLIPS]
    path = Path(__file__).with_name("sampling.json")
    known = json.loads(path.read_text()) if path.is_file() else {"clips": CLIPS, "families": {}}
    known["families"][family] = {"release": wanted, "frames": frames}
    lines = [f'  "{name}": {json.dumps(each)}' for name, each in sorted(known["families"].items())]
    told = f'{{\n "clips": {json.dumps(known["clips"])},\n "families": {{\n'
    path.write_text(told + ",\n".join(lines) + "\n }\n}\n")
    sys.stdout.write(f"{family}: {frames}\n"[:400] + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
