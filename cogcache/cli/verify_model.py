"""`verify-model`: a user's own checkpoint in one piece against its two stages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cogcache.cli.cache_option import NamedPath
from cogcache.cli.options import settings_options
from cogcache.cli.printing import json_option
from cogcache.settings import Settings

_FILE = NamedPath(exists=True, dir_okay=False, path_type=Path)
_PIXELS = ("max_pixels", "min_pixels", "max_video_pixels")


@click.command("verify-model")
@click.argument("model")
@click.argument("clips", nargs=-1, type=_FILE, metavar="[CLIP]...")
@click.option(
    "--reference-python",
    type=_FILE,
    metavar="PYTHON",
    help="Python of an environment whose transformers runs the whole model; else this one.",
)
@click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16")),
    default="auto",
    help="Of the weights; auto: float32 where the whole model fits, else bfloat16.",
)
@click.option("--offload", is_flag=True, help="Let what does not fit memory wait on the disk.")
@json_option
@settings_options("model", "sampling", model_needed=False, without=["model", "profile", *_PIXELS])
def verify_model(
    model: str,
    clips: tuple[Path, ...],
    reference_python: Path | None,
    dtype: str,
    offload: bool,
    json_: bool,
    settings: Settings,
) -> None:
    """Compare MODEL in one piece with its two stages: ids, positions, pixels, features, tokens.

    The whole model runs in another process, by this environment's transformers or by that of
    --reference-python. Without CLIP, two clips are generated. Exit status: 1 if something differs.
    """
    from dataclasses import asdict

    from cogcache.selftest import ModelCheck

    click.echo(f"looking at {model} …", err=True)
    named = settings.model_copy(update={"model": model})
    check = ModelCheck(named, clips, reference_python, dtype, offload)
    opening = check.opening()
    for line in opening:
        click.echo(line, err=json_)
    found = check.run(lambda part: click.echo(f"running {part} …", err=True))
    same = all(each.same for each in found)
    if json_:
        rows = [asdict(each) for each in found]
        click.echo(json.dumps({"same": same, "opening": opening, "compared": rows}, indent=1))
    else:
        for each in found:
            word = "same" if each.same else "DIFFERS"
            click.echo(f"{word:8}{each.clip:24}{each.what:14}{each.found}")
        click.echo(check.closing(found))
    raise SystemExit(0 if same else 1)
