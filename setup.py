"""Puts the settings to start from and the pages of the docs into the wheel.

They lie beside the package, where readers of the source look for them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPages(build_py):
    """Builds the package, with `configs/` and `docs/` inside."""

    def run(self) -> None:
        """Copy the files after the modules; an editable install has them beside the package."""
        super().run()
        if self.editable_mode:
            return
        for folder, suffix in (("configs", "toml"), ("docs", "md")):
            target = Path(self.build_lib, "cogcache", folder)
            target.mkdir(parents=True, exist_ok=True)
            for path in Path(folder).glob(f"*.{suffix}"):
                shutil.copyfile(path, target / path.name)


setup(cmdclass={"build_py": BuildWithPages})
