"""Manifest of a split checkpoint, `cogcache-split.json`: its files and those of its original."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cogcache.errors import CheckpointError, QuantizationError

MANIFEST = "cogcache-split.json"
FORMAT = 1
Settings = Mapping[str, str | bool | int]
KEPT_ROWS = 8
"""Rows of each quantised weight that are kept unquantised."""
DTYPES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}
"""Types as torch and as safetensors call them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class OriginalTensor(_Part):
    """A tensor of the original checkpoint, as its header described it, and where it is now."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    file: str | None = None
    """Which file holds it under the same name; None where only a quantised form is kept."""


class QuantizedHalf(_Part):
    """The language half in its quantised form, under the names that it has in memory."""

    settings: Settings
    tensors: tuple[str, ...]
    """Names of the original tensors that it was made of, and that are in no other half."""
    shared: tuple[str, ...]
    """Names of those that are in the vision half too, and are copied as well."""
    files: tuple[str, ...]
    originals: str
    """File with some rows of original weights, which the quantised ones are compared with."""


class SplitManifest(_Part):
    """The content of `cogcache-split.json`. It is written last: without it nothing was split."""

    format: int = FORMAT
    model: str
    """What the original was called."""
    revision: str | None
    total_bytes: int
    """Of the original's tensors."""
    shards: Mapping[str, str]
    """SHA-256 of each of the original's shards that was read."""
    tensors: Mapping[str, OriginalTensor]
    """Every tensor of the original."""
    quantized: QuantizedHalf | None
    files: Mapping[str, str]
    """SHA-256 of each file with tensors, by its name."""
    made_with: Mapping[str, str]
    """Versions of the libraries."""

    @classmethod
    def read(cls, folder: Path) -> SplitManifest:
        """Read a folder's manifest.

        Raises:
            CheckpointError: it cannot be read, or is of another format.
        """
        path, hint = folder / MANIFEST, "split the original anew"
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            first_line = str(error).splitlines()[0]
            raise CheckpointError(f"{path} cannot be read: {first_line}", hint) from error
        if manifest.format != FORMAT:
            problem = f"{path} is of format {manifest.format}, this version reads {FORMAT}"
            raise CheckpointError(problem, hint)
        return manifest

    def files_for(self, names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return where original tensors are kept, and the files of the quantised rest.

        Args:
            names: of original tensors.
        """
        form = self._form(names)
        left = set(names) - ({*form.tensors, *form.shared} if form else set())
        copied = {name: str(self.tensors[name].file) for name in left}
        return copied, form.files if form else ()

    def beside(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the files that go with `names` and are not loaded."""
        form = self._form(names)
        return (form.originals,) if form else ()

    def _form(self, names: Collection[str]) -> QuantizedHalf | None:
        """Return the quantised form that `names` are stored in, if they are."""
        quantized = self.quantized
        return quantized if quantized and not {*quantized.tensors}.isdisjoint(names) else None

    def check_asked(
        self, model: str, stored: Mapping[str, str], quantized: bool, dtype: str, asked: Settings
    ) -> bool:
        """Say whether a half is to be loaded in its quantised form; see `Checkpoint.is_stored_as`.

        Args:
            model: what the split checkpoint is called.
            stored: the types in which copied tensors are stored.
            quantized: whether the rest of the half is stored in quantised form.
            dtype: that is asked for.
            asked: the quantisation that is asked for; empty for none.
        """
        if asked:
            asked = {**asked, "compute_dtype": dtype}
        if quantized and self.quantized and self.quantized.settings != asked:
            problem = f"{model} holds its language half as {_words(self.quantized.settings)}"
            problem += f"; asked for was {_words(asked)}"
            hint = f"ask for what it holds, or take the original, {self.model}"
            raise QuantizationError(problem, hint)
        narrowed = sorted(name for name, now in stored.items() if now != self.tensors[name].dtype)
        if narrowed and ((asked and not quantized) or stored[narrowed[0]] != DTYPES[dtype]):
            first = narrowed[0]
            was, now = self.tensors[first].dtype, stored[first]
            problem = f"{model} holds {first} and {len(narrowed) - 1} more in {now}, of {was}"
            asked_for = f"{_words(asked)} of {dtype} weights" if asked else dtype
            hint = f"take the original, {self.model}, or split it in {dtype}"
            raise QuantizationError(f"{problem}; asked for was {asked_for}", hint)
        return quantized

    def to_json(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(indent=1)


def kept_rows(num_rows: int) -> list[int]:
    """Choose the rows of a weight that a split keeps as they were, from the first to the last."""
    count = min(num_rows, KEPT_ROWS)
    return [index * (num_rows - 1) // max(count - 1, 1) for index in range(count)]


def _words(settings: Settings) -> str:
    if not settings:
        return "not quantised"
    return ", ".join(f"{name} {str(value).lower()}" for name, value in settings.items())
