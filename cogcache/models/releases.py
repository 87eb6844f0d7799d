"""Which release of transformers each family was published with, and which ones cogcache was run on.

Authors made and measured a checkpoint with the release that was new at the time. Later releases
changed what goes into some families without a word (docs/families.md lists what). So that release,
not the installed one, says what is right.

Sources, for each family:

- `transformers` is the last patch of the first minor version whose package holds the folder
  `transformers/models/NAME` (the packages on PyPI were looked into, and those of the minor version
  before). Where the authors' own code came earlier (InternVL, ERNIE, Molmo2 and others), it is the
  release that the converted checkpoint was made for: remote code is never run.
- `golden` says that tests/golden/families holds what this release made of a clip with a small
  checkpoint that it wrote itself, and that tests/models/test_published.py compares it.
- `cogvlm2` has no class in transformers. Its published code ran with 4.42 and 4.43;
  tests/golden/cogvlm2-mini holds what that code gave.

`PASSED` is what `make matrix` found; benchmarks/matrix.json holds the whole table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cogcache.system import version_of


@dataclass(frozen=True, slots=True)
class Release:
    """The release of transformers that a family was published with.

    Args:
        transformers: its version.
        golden: whether what it made of a checkpoint and a clip is compared with cogcache's.
        remote_code: whether the published code lies on the hub and not in this release.
        otherwise: what newer releases make of the same input; "" where nothing was seen.
        left_so: whether cogcache does as the newer releases do: pixels then differ somewhat.
    """

    transformers: str
    golden: bool = False
    remote_code: bool = False
    otherwise: str = ""
    left_so: bool = False

    @property
    def minor(self) -> tuple[int, int]:
        """Major and minor version, as numbers."""
        return minor_of(self.transformers)


_AMID: Final = "text behind a video stands amid its positions"
_RATE: Final = "the rate of frames is counted in another way"
_MARKS: Final = "two tokens too many stand around a video"
_FILES: Final = "the processor cannot be loaded with its files as published"
_SHRUNK: Final = "frames are made smaller and blown up again"
_SMOOTH: Final = "frames are resized with antialiasing"
_NAMES: Final = "files that bear the release's own names of classes cannot be loaded"
_WINDOW: Final = "attention both ways within a picture ends at the sliding window"

RELEASES: Final[Mapping[str, Release]] = {
    "cogvlm2": Release("4.43.4", golden=True, remote_code=True),
    "qwen2_vl": Release("4.45.2", golden=True, otherwise=_AMID),
    "qwen2_5_vl": Release("4.49.0", golden=True, otherwise=f"{_AMID}; {_RATE}"),
    "qwen3_vl": Release("4.57.6", golden=True, otherwise=_MARKS),
    "glm4v": Release("4.53.3", golden=True, otherwise=_SMOOTH, left_so=True),
    "llava_onevision": Release("4.45.2", golden=True),
    "llava_next_video": Release("4.42.4", golden=True, otherwise=_FILES),
    "video_llava": Release("4.42.4", golden=True),
    "internvl": Release("4.52.4", golden=True),
    "smolvlm": Release("4.50.3", golden=True, otherwise=_SHRUNK),
    "video_llama_3": Release("5.0.0", golden=True),
    "cohere_compass": Release("5.16.1", golden=True),
    "ernie4_5_vl_moe": Release("5.0.0", golden=True, otherwise=f"{_AMID}; {_NAMES}"),
    "exaone4_5": Release("5.8.1", golden=True),
    "gemma3": Release("4.50.3", golden=True),
    "gemma4": Release("5.5.4", otherwise=_WINDOW),
    "glm46v": Release("5.0.0", golden=True),
    "glm4v_moe": Release("4.56.2", golden=True),
    "glm_ocr": Release("5.1.0", golden=True),
    "idefics3": Release("4.46.3", golden=True),
    "lfm2_vl": Release("4.57.6", golden=True),
    "lfm3_vl": Release("5.23.0"),
    "llava": Release("4.36.2"),
    "minicpmv4_6": Release("5.7.0", golden=True),
    "minicpmv4_7": Release("5.18.0", golden=True),
    "minimax_m3_vl": Release("5.12.1"),
    "mistral3": Release("4.50.3", golden=True),
    "molmo2": Release("5.20.2", golden=True),
    "qwen2_5_omni_thinker": Release("4.52.4", golden=True, otherwise=_RATE),
    "qwen3_5": Release("5.2.0", golden=True, otherwise=_MARKS),
    "qwen3_5_moe": Release("5.2.0", golden=True, otherwise=_MARKS),
    "qwen3_omni_moe_thinker": Release("4.57.6", golden=True, otherwise=_RATE),
    "qwen3_vl_moe": Release("4.57.6", golden=True, otherwise=_MARKS),
}
"""By family: all that `cogcache models` lists."""

PASSED: Final = ("5.23.0",)
"""Releases on which all goldens of families passed, the oldest first."""


def minor_of(version: str) -> tuple[int, int]:
    """Return major and minor version as numbers.

    Example:
        >>> minor_of("5.23.0")
        (5, 23)
    """
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def release_note() -> str | None:
    """Say that the installed transformers was never tried with cogcache; None where it was."""
    installed = version_of("transformers")
    if installed in PASSED:
        return None
    problem = f"transformers {installed} was never tried with cogcache, only {', '.join(PASSED)}"
    return f"{problem}: what goes into a model may differ"


def hush_transformers() -> None:
    """Have transformers say errors alone in this process, whether it is imported already or not."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # read when it is imported
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
