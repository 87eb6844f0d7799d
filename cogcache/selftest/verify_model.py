"""A user's own checkpoint: the whole model in one piece against the two stages.

The whole model runs in another process, by this environment's transformers or by that of another
Python, which may have the release that the family was published with. Then each stage runs in a
process of its own. No two of the three share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

from cogcache.errors import CheckpointError, ConfigError
from cogcache.models import (
    RELEASES,
    USUAL_FORMS,
    Family,
    Release,
    SplitCheckpoint,
    minor_of,
    open_family,
)
from cogcache.planning import published_count
from cogcache.selftest.both_halves import (
    OURS,
    Work,
    run_language_half,
    run_own_whole,
    run_vision_half,
    slot_ids,
    write_frames,
    write_job,
)
from cogcache.selftest.compared import LIMITS, OTHER_RESIZE, Compared, Limits, compare
from cogcache.selftest.other_python import OtherPython
from cogcache.selftest.shapes import FPS, SIDE, draw_scene, write_clip
from cogcache.selftest.whole_memory import NOTHING_QUANTISED, Needed, needed
from cogcache.settings import Settings
from cogcache.system import in_own_process, scratch_folder
from cogcache.video import probe

QUESTION: Final = "Please describe this video in detail."
NEW_TOKENS: Final = 32
MADE_UP: Final = 2
"""Number of clips that are drawn if the user gives none."""
SHORT: Final = 32
LONGER: Final = 16
"""Frames of the shortest of these, and how many more the next has; eight are a second."""
MADE_UP_S: Final = (SHORT + LONGER) / FPS
OWN: Final = "cogvlm2"
"""A family whose published code is remote code, which cogcache never runs."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelCheck:
    """What to compare, before anything is loaded.

    Args:
        settings: model, device, memory, which frames.
        clips: videos; made-up ones where there are none.
        python: that runs the whole model; None for the one that runs this.
        dtype: `float32`, `bfloat16`, or `auto` for the first of these that fits.
        offload: whether what does not fit into memory may wait on the disk.
    """

    settings: Settings
    clips: Sequence[Path] = ()
    python: Path | None = None
    dtype: str = "auto"
    offload: bool = False

    @cached_property
    def family(self) -> Family:
        """The checkpoint's family; all of its shards are there."""
        family = open_family(self.settings)
        if isinstance(family.checkpoint, SplitCheckpoint):
            hint = "give the checkpoint that it was split from"
            raise CheckpointError(f"{family.checkpoint.model} is split", hint)
        if family.name == OWN and self.python is not None:
            problem = "the published code of CogVLM2-Video is remote code, which is never run"
            raise ConfigError(problem, "leave out --reference-python")
        if family.name == OWN and self.offload:
            problem = "CogVLM2-Video in one piece cannot wait on the disk"
            raise ConfigError(problem, "leave out --offload, and give it the memory that it takes")
        return family

    @cached_property
    def release(self) -> Release | None:
        """The release that the family was published with; None where nobody looked."""
        return RELEASES.get(self.family.name)

    @cached_property
    def other(self) -> OtherPython:
        """The Python that runs the whole model.

        Raises:
            ConfigError: it is none, or has not what the program needs.
        """
        return OtherPython.of(self.python, self.family.name, self.release)

    @cached_property
    def needed(self) -> Needed:
        """What the whole model takes, and of what."""
        size, frames = self._largest()
        return needed(self.settings, self.dtype, frames, size, offload=self.offload)

    def _largest(self) -> tuple[tuple[int, int], int]:
        """Return the largest size and number of frames of the clips."""
        if not self.clips:
            return (SIDE, SIDE), self._frames_of(MADE_UP_S, FPS)
        infos = [probe(path) for path in self.clips]
        size = max(((info.width, info.height) for info in infos), key=prod)
        return size, max(self._frames_of(info.duration_s, info.fps) for info in infos)

    def _frames_of(self, duration_s: float, fps: float) -> int:
        if self.settings.sampling.strategy == "published":
            return published_count(self.settings, duration_s, fps)
        return self.settings.sampling.max_frames

    def opening(self) -> list[str]:
        """Return what is to be said beforehand: who judges, and what it takes.

        Raises:
            CogcacheError: the Python cannot do it, or the model does not fit.
        """
        return [*self._judge(), *self.needed.lines()]

    def _judge(self) -> list[str]:
        if self.family.name == OWN:
            return ["judge: our own model in one piece; the published code is not run"]
        versions, release = self.other.versions, self.release
        first = f"judge: transformers {versions['transformers']}, torch {versions['torch']}"
        if release is None:
            return [first]
        known = f"  newer releases do otherwise: {release.otherwise}"
        if self._is_release_itself:
            left = "so does cogcache: pixels, and what comes of them, may differ somewhat"
            return [first, f"{known}; {left}"] if release.left_so else [first]
        first += f"; {self.family.name} was published with {release.transformers}"
        said = [known] if release.otherwise and self.python is None else []
        return [first, *said, *(f"  {line}" for line in self.other.making())]

    @property
    def _is_release_itself(self) -> bool:
        """Whether the judge is the release that the family was published with."""
        judge, release = self.other.versions["transformers"], self.release
        return release is not None and minor_of(judge) == release.minor

    def _limits(self) -> Limits:
        if self.family.name == OWN or self.release is None or not self.release.left_so:
            return LIMITS[self.needed.dtype]
        return OTHER_RESIZE if self._is_release_itself else LIMITS[self.needed.dtype]

    def closing(self, found: Sequence[Compared]) -> str:
        """Return the result in one line."""
        if all(each.same for each in found):
            return "all the same"
        release = self.release
        if self.family.name == OWN or release is None:
            return "not the same"
        version = self.other.versions["transformers"]
        if self._is_release_itself:
            return f"not the same as transformers {version}, which the family was published with"
        judge = f"transformers {release.transformers} decides for {self.family.name}"
        return f"not the same as transformers {version}; {judge}: see above"

    def run(self, say: Say) -> list[Compared]:
        """Run all three processes and compare their results.

        Args:
            say: is told what begins.

        Raises:
            CogcacheError: one of them could not do its work.
        """
        self.family.checkpoint.fetch(sorted(set(self.family.checkpoint.weight_map.values())))
        with scratch_folder() as folder:
            work = self._work(folder)
            say("the whole model")
            self._run_whole(work)
            say("stage one")
            in_own_process(run_vision_half, work)
            say("stage two")
            in_own_process(run_language_half, work)
            return [each for name in work.clips for each in self._compared(work, name)]

    def _work(self, folder: Path) -> Work:
        clips = {f"{n}-{path.stem}": path for n, path in enumerate(self.clips)}
        clips = clips or _made_up(folder)
        return Work(folder, self._exact(), clips, QUESTION, NEW_TOKENS)

    def _exact(self) -> Settings:
        """Return the settings with nothing quantised, in the type that was chosen."""
        dtype = self.needed.dtype
        language = {**NOTHING_QUANTISED, "compute_dtype": dtype}
        tables = {
            "vision": self.settings.vision.model_copy(update={"vision_dtype": dtype}),
            "language": self.settings.language.model_copy(update=language),
        }
        return self.settings.model_copy(update=tables)

    def _run_whole(self, work: Work) -> None:
        if self.family.name == OWN:
            in_own_process(run_own_whole, work)
            return
        write_job(work, self._job(work))
        self.other.run(work.folder)

    def _job(self, work: Work) -> Mapping[str, Any]:
        checkpoint = self.family.checkpoint
        processor: Any = getattr(self.family, "processor", None)
        return {
            "checkpoint": str(checkpoint.folder.absolute()),
            "family": self.family.name,
            "architecture": checkpoint.architecture,
            "takes_images": not processor.takes_videos,
            "slot_ids": sorted(slot_ids(self.family) or ()),
            "usual_form": USUAL_FORMS.get(self.family.name),
            "dtype": self.needed.dtype,
            **self.needed.placement(),
            "question": work.question,
            "new_tokens": work.new_tokens,
            "clips": write_frames(work),
        }

    def _compared(self, work: Work, name: str) -> list[Compared]:
        from safetensors.torch import load_file

        ours = load_file(work.folder / f"{name}.{OURS}.safetensors")
        ours |= load_file(work.folder / f"{name}.pixels.safetensors")
        theirs = load_file(work.folder / f"{name}.reference.safetensors")
        if self.family.name == OWN:  # the same code laid these out: they would say nothing
            theirs = {key: theirs[key] for key in ("features", "logits", "tokens")}
        return compare(name, ours, theirs, self._limits())


def _made_up(folder: Path) -> dict[str, Path]:
    """Write clips of moving shapes."""
    import numpy as np

    clips = {f"made-up-{number}": folder / f"{number}.mp4" for number in range(MADE_UP)}
    for number, path in enumerate(clips.values()):
        write_clip(draw_scene(np.random.default_rng(number), SHORT + LONGER * number), path)
    return clips
