"""`train` and `distill`: a language half learns from cached features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import NamedPath, cache_option
from cogcache.cli.filters import (
    catalog_of,
    selection_arguments,
    selection_options_of_training,
)
from cogcache.cli.options import as_arguments, settings_options
from cogcache.cli.stages import STAGE_TWO as CAPTIONED
from cogcache.cli.stages import catalog_option
from cogcache.settings import Settings

if TYPE_CHECKING:
    from cogcache.catalog import Selection

TRAINED = (
    "model",
    "sampling",
    "vision",
    "language",
    "generation",
    "limits",
    "machines",
    "training",
)


@click.command()
@cache_option
@click.option(
    "--out",
    type=NamedPath(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the adapter and the checkpoints on the way to it.",
)
@catalog_option
@selection_options_of_training
@settings_options(*TRAINED, prompts=True)
def train(
    cache: Path,
    out: Path,
    catalog_path: Path | None,
    selection: Selection,
    settings: Settings,
) -> None:
    """Train the language half on captions of the cache; the vision half is not loaded.

    The captions are those that pass the filters, such as an imported set of corrected ones:
    --captions-of SET. Run the same command again to resume.
    """
    from cogcache.stages import train as run

    catalog_of(cache)
    done = run(cache, out, settings, selection, catalog_path)
    click.echo("\n".join(done.lines))
    raise SystemExit(done.exit_status)


DISTILLED = (*TRAINED, "distillation")


@click.command()
@cache_option
@click.option(
    "--out",
    type=NamedPath(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the student's checkpoint.",
)
@click.option("--teacher", metavar="MODEL", help="The teacher; else the --model of --config.")
@click.option(
    "--layers",
    metavar="N|LIST",
    help="Number or list of the layers that the student keeps.",
)
@click.option("--student", metavar="MODEL", help="A Llama-like model in place of layers.")
@click.option(
    "--part",
    type=click.Choice(["teacher", "student"]),
    help="Do this part alone, in this process; by default both, each in one of its own.",
)
@catalog_option
@selection_options_of_training
@settings_options(*DISTILLED, prompts=True)
def distill(
    cache: Path,
    teacher: str | None,
    part: str | None,
    selection: Selection,
    settings: Settings,
    **more: Any,
) -> None:
    """Train a smaller model on a teacher's captions and its probabilities for each token.

    Without --captions-of, the teacher first captions the cache; existing captions stay. Run the
    same command again to resume.
    """
    catalog_of(cache)
    if teacher is not None:
        settings = settings.model_copy(update={"model": teacher})
    if part is None:
        raise SystemExit(_in_parts(cache, selection, settings, more))
    from cogcache.stages import StudentChoice, study, teach

    choice = StudentChoice(more["layers"], more["student"])
    if part == "teacher":
        lines = teach(cache, settings, selection, choice, more["catalog_path"])
        click.echo("\n".join(lines))
        return
    done = study(cache, more["out"], settings, selection, choice, more["catalog_path"])
    click.echo("\n".join(done.lines))
    raise SystemExit(done.exit_status)


def _in_parts(cache: Path, selection: Selection, settings: Settings, more: dict[str, Any]) -> int:
    """Run the teacher and the student, each in a process of its own; return the exit status."""
    from cogcache.models import model_name
    from cogcache.stages import StudentChoice, run_stage

    StudentChoice(more["layers"], more["student"]).check(settings)
    own = [f"--catalog={more['catalog_path']}"] if more["catalog_path"] else []
    common = [f"--cache={cache}", *own]
    if not selection.models:
        told = as_arguments(settings, *CAPTIONED, prompts=True)
        if (status := run_stage(["caption", *common, *told])) not in (0, 1):
            return status
        name = model_name(settings.model, settings.language.adapter)
        selection = replace(selection, models=(name,))
    given = {name: more[name] for name in ("out", "layers", "student") if more[name] is not None}
    arguments = [
        *common,
        *(f"--{name}={value}" for name, value in given.items()),
        *selection_arguments(selection),
        *as_arguments(settings, *DISTILLED, prompts=True),
    ]
    status = run_stage(["distill", "--part=teacher", *arguments])
    return status or run_stage(["distill", "--part=student", *arguments])
