"""Folder layouts of trainers: numbered MP4 files and their captions, one line each.

Stems are digits alone: unique over the export, and free of the dots and of words such as
"test" and "val" that readers take for something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cogcache.export.clip_files import ClipFacts, Takes
from cogcache.export.items import Item
from cogcache.export.rows import json_line
from cogcache.export.wording import one_line


@dataclass(frozen=True, slots=True)
class Placed:
    """A clip whose video file is in the export."""

    name: str
    item: Item
    facts: ClipFacts
    others: tuple[Item, ...] = ()
    """Further captions of the clip, where the trainer reads several of a file."""

    @property
    def items(self) -> tuple[Item, ...]:
        """All its captions."""
        return self.item, *self.others

    @property
    def captions(self) -> list[str]:
        """All its captions, each on one line."""
        return [one_line(item.caption) for item in self.items]

    @property
    def caption(self) -> str:
        """The caption on one line."""
        return one_line(self.item.caption)

    def about_clip(self) -> dict[str, object]:
        """Return what every format says of a clip beside its caption and its video's name."""
        row = self.item.row
        return {
            "start_s": float(row["start_s"]),
            "end_s": self.item.end_s,
            "offset_s": self.item.offset_s or 0.0,
            "prompt_name": row["prompt_name"],
            "model": row["model"],
            "num_frames": self.facts.num_frames,
            "fps": self.facts.fps,
            "width": self.facts.width,
            "height": self.facts.height,
        }


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a trainer expects videos and captions."""

    media: str
    """The folder of the video files, below the export's."""
    write: Callable[[Path, Path, list[Placed]], None]
    """Writes the rest: takes the folder, the place it will have in the end, and the clips."""
    flags: str
    """How the trainer is told of it; ``{out}`` is the export's folder."""
    takes: Takes
    """What its reader takes."""
    max_words: int
    """About as many words as the trainer's text encoder reads; it cuts the rest silently."""
    takes_several: bool = False
    """Whether its reader takes several captions of one file."""


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file: UTF-8, a line each, one line feed after each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _beside(folder: Path, placed: list[Placed]) -> None:
    for each in placed:
        write_lines((folder / each.name).with_suffix(".txt"), each.captions)


def _cogvideox(root: Path, out: Path, placed: list[Placed]) -> None:
    write_lines(root / "prompts.txt", (each.caption for each in placed))
    write_lines(root / "videos.txt", (f"videos/{each.name}" for each in placed))


def _finetrainers(root: Path, out: Path, placed: list[Placed]) -> None:
    _beside(root / "data", placed)
    # A relative data_root would be joined twice.
    dataset = {"data_root": str(out / "data"), "dataset_type": "video"}
    buckets = {"video_resolution_buckets": [[49, 480, 832]], "reshape_mode": "bicubic"}
    text = json.dumps({"datasets": [{**dataset, **buckets}]}, indent=2, ensure_ascii=False)
    write_lines(root / "training.json", [text])


def _musubi(root: Path, out: Path, placed: list[Placed]) -> None:
    _beside(root / "videos", placed)
    write_lines(
        root / "dataset.toml",
        [
            "[general]",
            "resolution = [960, 544]",
            'caption_extension = ".txt"',
            "batch_size = 1",
            "enable_bucket = true",
            "bucket_no_upscale = true",
            "",
            "[[datasets]]",
            f"video_directory = {_toml(out / 'videos')}",
            f"cache_directory = {_toml(out / 'cache')}",
            "target_frames = [1, 25, 45]",
            'frame_extraction = "head"',
            "num_repeats = 1",
        ],
    )


def _diffusion_pipe(root: Path, out: Path, placed: list[Placed]) -> None:
    if any(each.others for each in placed):
        # With this file there, its reader passes all .txt by.
        several = {each.name: each.captions for each in placed}
        text = json.dumps(several, indent=2, ensure_ascii=False)
        write_lines(root / "videos" / "captions.json", [text])
    else:
        _beside(root / "videos", placed)
    write_lines(
        root / "dataset.toml",
        [
            "resolutions = [512]",
            "enable_ar_bucket = true",
            "min_ar = 0.5",
            "max_ar = 2.0",
            "num_ar_buckets = 7",
            "frame_buckets = [1, 33]",
            "",
            "[[directory]]",
            f"path = {_toml(out / 'videos')}",
            "num_repeats = 1",
        ],
    )


def _ai_toolkit(root: Path, out: Path, placed: list[Placed]) -> None:
    _beside(root / "videos", placed)
    write_lines(
        root / "dataset.yaml",
        [
            "datasets:",
            f"  - folder_path: {_toml(out / 'videos')}",
            '    caption_ext: "txt"',
            "    num_frames: 33",
            "    resolution: [512]",
        ],
    )


def _simpletuner(root: Path, out: Path, placed: list[Placed]) -> None:
    _beside(root / "videos", placed)
    # Without the split a caption is one text; with it each line of a file is a caption.
    several = any(each.others for each in placed)
    clips = {
        "id": "clips",
        "type": "local",
        "dataset_type": "video",
        "instance_data_dir": str(out / "videos"),
        "caption_strategy": "textfile",
        "metadata_backend": "discovery",
        "disable_multiline_split": not several,
        "resolution": 480,
        "resolution_type": "pixel_area",
        "minimum_image_size": 0,
        "crop": False,
        "repeats": 0,
        "cache_dir_vae": str(out / "cache" / "vae"),
        "video": {"num_frames": 49, "min_frames": 49},
    }
    texts = {
        "id": "texts",
        "type": "local",
        "dataset_type": "text_embeds",
        "default": True,
        "cache_dir": str(out / "cache" / "text"),
    }
    text = json.dumps([clips, texts], indent=2, ensure_ascii=False)
    write_lines(root / "multidatabackend.json", [text])


def _ltx(root: Path, out: Path, placed: list[Placed]) -> None:
    with (root / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(
            json_line({"caption": each.caption, "media_path": f"videos/{each.name}"})
            for each in placed
        )


def _videofolder(root: Path, out: Path, placed: list[Placed]) -> None:
    with (root / "train" / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_line(_metadata(each)) for each in placed)


def _metadata(placed: Placed) -> dict[str, object]:
    # Any column named file_name or ..._file_name would be taken for a video, a date for a time.
    return {
        "file_name": f"videos/{placed.name}",
        "text": placed.caption,
        "source_path": placed.item.row["video"],
        **placed.about_clip(),
    }


def _toml(path: Path) -> str:
    # JSON's strings are TOML's but for DEL, which TOML wants escaped.
    return json.dumps(str(path), ensure_ascii=False).replace("\x7f", "\\u007f")


DECORD: Final = Takes("decord")
FFMPEG: Final = Takes("an older FFmpeg")

LAYOUTS: Final[dict[str, Layout]] = {
    "videofolder": Layout(
        "train/videos", _videofolder, 'load_dataset("videofolder", data_dir="{out}")', FFMPEG, 340
    ),
    "cogvideox": Layout(
        "videos",
        _cogvideox,
        "--instance_data_root {out} --caption_column prompts.txt --video_column videos.txt",
        DECORD,
        150,
    ),
    "finetrainers": Layout(
        "data", _finetrainers, "--dataset_config {out}/training.json", DECORD, 85
    ),
    "musubi": Layout("videos", _musubi, "--dataset_config {out}/dataset.toml", FFMPEG, 340),
    "diffusion-pipe": Layout(
        "videos", _diffusion_pipe, 'dataset = "{out}/dataset.toml"', FFMPEG, 340, takes_several=True
    ),
    "ai-toolkit": Layout(
        "videos", _ai_toolkit, "datasets of the job's config: {out}/dataset.yaml", FFMPEG, 340
    ),
    "simpletuner": Layout(
        "videos",
        _simpletuner,
        "--data_backend_config {out}/multidatabackend.json",
        FFMPEG,
        340,
        takes_several=True,
    ),
    "ltx": Layout(
        "videos",
        _ltx,
        "preprocess_dataset.py {out}/metadata.jsonl --caption-column caption"
        " --video-column media_path",
        DECORD,
        170,
    ),
}
