"""Another Python with its own release of transformers, which runs the whole model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cogcache.errors import CogcacheError, ConfigError
from cogcache.models import Release
from cogcache.selftest import reference
from cogcache.system import version_of

NEEDED: Final = ("torch", "transformers", "safetensors", "numpy")
_LOOK: Final = f"""
import json, sys
try:
    from importlib.metadata import PackageNotFoundError, version
except ImportError:
    sys.exit("Python 3.8 or newer is needed")
found = {{}}
for name in {NEEDED}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_PATIENCE_S: Final = 60.0
_LOG_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class OtherPython:
    """A Python that has all packages that the program needs.

    Args:
        path: of the interpreter.
        versions: of the packages in `NEEDED`.
        family: that it is to run.
        release: the one that the family was published with, if it is known.
    """

    path: Path
    versions: Mapping[str, str]
    family: str
    release: Release | None

    @classmethod
    def of(cls, path: Path | None, family: str, release: Release | None) -> OtherPython:
        """Look at a Python; None is the one that runs this.

        Raises:
            ConfigError: it is none, or lacks a package.
        """
        # Its link is not followed: that is what tells an environment from what it was made with.
        found = cls((path or Path(sys.executable)).absolute(), {}, family, release)
        versions = found._look()
        if absent := [name for name in NEEDED if name not in versions]:
            problem = f"{found.path} has no {', '.join(absent)}"
            raise ConfigError(problem, found._hint())
        return cls(found.path, versions, family, release)

    def making(self) -> list[str]:
        """Return what to type to make an environment of the family's release."""
        return [] if self.release is None else environment_lines(self.family, self.release)

    def _hint(self) -> str:
        lines = self.making()
        wanted = "give the Python of an environment with a release of transformers"
        return "\n".join([f"{wanted}; to make one:", *lines]) if lines else wanted

    def _look(self) -> dict[str, str]:
        try:
            done = subprocess.run(
                [self.path, "-c", _LOOK],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
            found: dict[str, str] = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"{self.path} is no Python that can be run", self._hint()) from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.path} is no Python that can be run", self._hint())
        return found

    def _environment(self) -> dict[str, str]:
        """Return the environment of the process: its own packages, and nothing from the hub."""
        ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} - self._shared()
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "USE_TF": "0"}
        return kept | offline | {"TOKENIZERS_PARALLELISM": "false"}

    def _shared(self) -> set[str]:
        same = self.path == Path(sys.executable)
        return {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} if same else set()

    def run(self, folder: Path) -> None:
        """Run the program on a folder; see `cogcache.selftest.reference`.

        Raises:
            CogcacheError: the release cannot run the checkpoint, or the process was killed.
        """
        # Beside our modules it would take them for packages of its own.
        program = folder / "reference.py"
        shutil.copyfile(str(reference.__file__), program)
        with (folder / "reference.log").open("w+", encoding="utf-8", errors="replace") as log:
            done = subprocess.run(
                [self.path, program, folder],
                cwd=folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise self._failure(folder, done.returncode)

    def _failure(self, folder: Path, status: int) -> CogcacheError:
        what = f"transformers {self.versions['transformers']} in {self.path}"
        hint = self._hint() if self.release else "try another release"
        if (folder / reference.RESULT).is_file():
            told = json.loads((folder / reference.RESULT).read_text("utf-8"))
            problem = f"{what} cannot run the whole model: {told['error']} ({told['place']})"
            return CogcacheError(problem, hint)
        if status < 0:
            problem = f"the process of {what} was killed by signal {-status}"
            return CogcacheError(problem, "memory may have run out: see --memory and --offload")
        log = (folder / "reference.log").read_text("utf-8", errors="replace").splitlines()
        told = "; ".join(line.strip() for line in log[-_LOG_LINES:])
        return CogcacheError(f"{what} ended with exit status {status}: {told}", hint)


def environment_lines(family: str, release: Release) -> list[str]:
    """Return the two lines that make an environment of a family's release.

    torch and torchvision are those that are installed here: the releases back to 4.42 were run
    with them, and arithmetic then differs in nothing else. Python 3.11 is one that all packages of
    those releases have wheels for.
    """
    folder = f"{family}-{release.transformers}"
    torch, vision = (version_of(name).partition("+")[0] for name in ("torch", "torchvision"))
    packages = [f"transformers=={release.transformers}", f"torch=={torch}"]
    packages += [f"torchvision=={vision}", "accelerate", "pillow", "num2words"]
    return [
        f"python{'3.11' if release.minor < (5, 0) else '3'} -m venv {shlex.quote(folder)}",
        f"{shlex.quote(folder)}/bin/python -m pip install {' '.join(packages)}",
    ]
