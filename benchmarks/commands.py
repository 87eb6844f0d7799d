"""Lists every command that writes, for `torture_commands` and `full_disks`. Add new ones here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.made_up_cache import NUM_CLIPS, write_cache
from cogcache.catalog.backup import back_up
from cogcache.catalog.catalog import Catalog
from cogcache.selftest.shapes import draw_scene, write_clip


@dataclass(frozen=True)
class Command:
    """A command that writes."""

    arguments: Callable[[Path], Sequence[str]]
    """What is typed, given the folder that it works in."""
    prepare: Callable[[Path], None] = lambda folder: None
    """Brings the folder into the state in which it is typed."""
    real: bool = False
    """Whether it takes videos that can be decoded, and features and captions of `tiny`."""
    passed_by: tuple[str, ...] = ()
    """Patterns of files whose bytes hold times or figures."""


NUM_REAL = 2
_QUICK = ("--min-free=0", "--decode-workers=1")
_SHORT = ("--max-new-tokens=4", "--quantization=none", "--min-free=0")
_ALL = (*_SHORT, "--decode-workers=1")


def make_cache(folder: Path, *, real: bool) -> None:
    """Make the cache that commands are typed over, with a backup, its videos beside it."""
    if real:
        _real_cache(folder)
    else:
        write_cache(folder)
    if (folder / "cache" / "catalog.sqlite").exists():
        back_up(folder / "cache" / "catalog.sqlite")


def run_command(*arguments: str) -> None:
    """Run a command of cogcache in this process.

    Raises:
        RuntimeError: it ends with another status than 0.
    """
    from cogcache.cli import main

    try:
        main(list(arguments), standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{arguments} ended with {end.code}") from end


def _real_cache(folder: Path) -> None:
    (folder / "videos").mkdir()
    for number in range(NUM_REAL):
        write_clip(
            draw_scene(np.random.default_rng(number), 4), folder / "videos" / f"{number}.mp4"
        )
    on = [f"--cache={folder / 'cache'}", "--model=tiny", "--min-free=0"]
    videos = str(folder / "videos")
    run_command("extract", videos, *on, "--decode-workers=1")
    run_command("caption", *on, *_SHORT)


def _lose_videos(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.mp4").unlink()


def _edit_captions(folder: Path) -> None:
    lines = [f'{{"video": "{folder / f"{n}.mp4"}", "caption": "edited {n}"}}' for n in range(3)]
    (folder / "edited.jsonl").write_text("\n".join(lines))


def _damage_a_file(folder: Path) -> None:
    path = next((folder / "cache" / "features").glob("*/*.h5"))
    path.write_bytes(path.read_bytes()[:-10])


def _damage_a_row(folder: Path) -> None:
    path = folder / "cache" / "catalog.sqlite"
    content = bytearray(path.read_bytes())
    content[content.index(b"It is number 3") + 6] ^= 1
    path.write_bytes(content)


def _forget_captions(folder: Path) -> None:
    run_command("forget", "--yes", "--prompt-name=default", f"--cache={folder / 'cache'}")


def _accept_captions(folder: Path) -> None:
    run_command("review", "accept", "--all", "--author=me", f"--cache={folder / 'cache'}")


def _edit_real_captions(folder: Path) -> None:
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows()
    lines = [json.dumps({"feature_key": c["feature_key"], "caption": "a red disc"}) for c in clips]
    (folder / "edited.jsonl").write_text("\n".join(lines))
    from cogcache.export.importing import import_captions

    import_captions(folder / "edited.jsonl", folder / "cache" / "catalog.sqlite", "edited")


def _on(folder: Path) -> str:
    return f"--cache={folder / 'cache'}"


def _out(folder: Path, name: str) -> str:
    return str(folder / name)


def _exported(format_: str) -> Command:
    """Return the export of rows or subtitles to a file or folder."""
    return Command(lambda f: ["export", _out(f, f"out.{format_}"), _on(f), "--overwrite"])


def _for_trainers(layout: str) -> Command:
    return Command(
        lambda f: ["export", _out(f, "out"), f"--format={layout}", _on(f), "--overwrite"],
        real=True,
    )


_LEARNT = ("--epochs=1", "--accumulate=1", "--rank=2", *_SHORT, "--captions-of=edited")

COMMANDS: dict[str, Command] = {
    "extract": Command(
        lambda f: ["extract", _out(f, "videos"), f"--cache={f / 'new'}", "--model=tiny", *_QUICK],
        real=True,
    ),
    "caption": Command(
        lambda f: ["caption", _on(f), "--model=tiny", "--prompt=c=What color is it?", *_SHORT],
        real=True,
    ),
    "run": Command(
        lambda f: ["run", _out(f, "videos"), f"--cache={f / 'new'}", "--model=tiny", *_ALL],
        real=True,
    ),
    "convert": Command(
        lambda f: ["convert", _on(f), "--model=tiny", "--compression=blosc2", "--min-free=0"],
        real=True,
    ),
    "train": Command(
        lambda f: ["train", _on(f), f"--out={f / 'out'}", "--model=tiny", *_LEARNT],
        _edit_real_captions,
        real=True,
        passed_by=("README.md", "*.jsonl"),
    ),
    "distill": Command(
        lambda f: ["distill", _on(f), f"--out={f / 'out'}", "--model=tiny", "--layers=1", *_LEARNT],
        _edit_real_captions,
        real=True,
        passed_by=("README.md", "*.jsonl"),
    ),
    "split": Command(
        lambda f: ["split", "tiny", _out(f, "out"), "--quantization=nf4"],
        real=True,
    ),
    "demo": Command(lambda f: ["demo", f"--folder={f / 'demo'}"], real=True),
    "gc": Command(lambda f: ["gc", "--yes", _on(f)], _lose_videos),
    "merge": Command(lambda f: ["merge", f"{f / 'cache'}", f"--into={f / 'merged'}"]),
    "rebuild": Command(lambda f: ["rebuild", _on(f)]),
    "rebuild --from-backup": Command(lambda f: ["rebuild", "--from-backup", _on(f)], _damage_a_row),
    "verify --fix": Command(lambda f: ["verify", "--fix", _on(f)], _damage_a_file),
    "import": Command(
        lambda f: ["import", f"{f / 'edited.jsonl'}", _on(f), "--set=edited"], _edit_captions
    ),
    "review accept": Command(lambda f: ["review", "accept", "--all", "--author=me", _on(f)]),
    "review edit": Command(lambda f: ["review", "edit", "1", "another", "--author=me", _on(f)]),
    "review undo": Command(lambda f: ["review", "undo", "--author=me", _on(f)], _accept_captions),
    "replace": Command(lambda f: ["replace", "number", "No.", "--yes", "--author=me", _on(f)]),
    "forget": Command(lambda f: ["forget", "--yes", "--prompt-name=default", _on(f)]),
    "forget --undo": Command(
        lambda f: ["forget", "--undo", "--prompt-name=default", _on(f)], _forget_captions
    ),
    "score": Command(lambda f: ["score", _on(f), "--min-free=0"], real=True),
    "score model": Command(
        lambda f: ["score", "model", _on(f), "--model=tiny", "--quantization=none", "--min-free=0"],
        real=True,
    ),
    "export jsonl": _exported("jsonl"),
    "export csv": _exported("csv"),
    "export parquet": _exported("parquet"),
    "export txt": Command(
        lambda f: ["export", _out(f, "out"), "--format=txt", _on(f), "--overwrite"]
    ),
    "export vtt": Command(
        lambda f: ["export", _out(f, "out"), "--format=vtt", _on(f), "--overwrite"]
    ),
    "export --beside": Command(lambda f: ["export", "--beside=srt", _on(f), "--overwrite"]),
    "export --features": Command(
        lambda f: ["export", f"{f / 'out.h5'}", "--features", _on(f), "--overwrite"]
    ),
    "export videofolder": _for_trainers("videofolder"),
    "export musubi": _for_trainers("musubi"),
    "export webdataset": _for_trainers("webdataset"),
    "gallery": Command(lambda f: ["gallery", f"{f / 'out.html'}", _on(f), "--force"]),
    "report": Command(
        lambda f: ["report", f"{f / 'out.html'}", _on(f), "--overwrite"],
        real=True,  # it tells of runs
        passed_by=("out.html",),
    ),
}
"""By what is killed. What differs in the layout of its folder alone is not listed again."""

__all__ = ["COMMANDS", "NUM_CLIPS", "Command", "make_cache", "run_command"]
