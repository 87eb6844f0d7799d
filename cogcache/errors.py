"""Every error that cogcache raises on purpose.

CogcacheError
├── ConfigError (ValueError)            a setting, an option, a TOML key
│   └── NothingChosenError              no caption passes the filters; exit status 1
├── CheckpointError                     a model's folder, index or shard
│   ├── MissingShardError (FileNotFoundError)
│   ├── TruncatedShardError
│   └── TensorMismatchError             missing, unexpected or misshapen tensors
├── UnknownFamilyError                  no family knows this architecture
├── QuantizationError                   what was asked for is not what was loaded
├── TrainingError                       training cannot go on: its data, its loss, its checkpoint
│   └── NothingToLearnError             no caption is left to learn from; exit status 1
├── MachineError                        it has no more files, memory or disk to give
├── MissingVideosError                  no file holds a video, and that was to be an error
├── CacheError                          a cache folder that is not ours, or of another format
│   ├── CorruptFeaturesError            a feature file whose bytes are not the sealed ones
│   └── CatalogError
│       └── DamagedCatalogError         its file is not what SQLite wrote
└── ClipError                           one clip cannot be done; the run goes on
    ├── VideoError                      the file or its stream
    └── FeaturesError                   what the vision half gave for it (NaN, Inf)

Only a ClipError is ever turned into a failure row; any other error ends the run.
"""

from __future__ import annotations

from typing import ClassVar


class CogcacheError(Exception):
    """Base of every error raised on purpose; the command line prints it without a traceback.

    Args:
        problem: what is wrong: the file or key, what was expected, what was found.
        hint: what to do next, as a command to run wherever there is one.

    Attributes:
        exit_status: what a command ends with: 2 for misuse and the machine's faults, 1 where
            something is missing that was asked for.

    Example:
        >>> try:
        ...     load_settings(None, {"max_frame": 12})
        ... except CogcacheError as error:
        ...     print(error.hint)
        did you mean max_frames under [sampling]?
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when the error crosses from a worker process."""
        return (_rebuild, (type(self), self.__dict__))

    def __str__(self) -> str:
        return f"{self.problem}\nHint: {self.hint}" if self.hint else self.problem


def _rebuild(kind: type[CogcacheError], fields: dict[str, object]) -> CogcacheError:
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    error.args = (fields["problem"],)
    return error


class ConfigError(CogcacheError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class NothingChosenError(ConfigError):
    """No caption passes the filters that were given."""

    exit_status = 1


class CheckpointError(CogcacheError):
    """A checkpoint cannot be read as what it should be."""


class MissingShardError(CheckpointError, FileNotFoundError):
    """A shard that holds a tensor of the wanted half is not there."""


class TruncatedShardError(CheckpointError):
    """A shard is shorter than its header says, or has no readable header."""


class TensorMismatchError(CheckpointError):
    """Tensors are missing, unexpected or of another shape than the model's."""


class UnknownFamilyError(CogcacheError):
    """No family of models matches a checkpoint."""


class QuantizationError(CogcacheError):
    """The weights in memory are not of the precision that was asked for."""


class TrainingError(CogcacheError):
    """Training cannot begin or go on: nothing to learn from, a loss that is no number."""


class NothingToLearnError(TrainingError):
    """No caption is left to learn from."""

    exit_status = 1


class MachineError(CogcacheError):
    """The machine does not give what the work needs, whichever video it is."""


class MissingVideosError(CogcacheError):
    """No file holds the bytes of videos that were asked for."""

    exit_status = 1


class CacheError(CogcacheError):
    """A cache folder cannot be used."""


class CorruptFeaturesError(CacheError):
    """A feature file does not hold the bytes that were sealed into it."""


class CatalogError(CacheError):
    """The catalog cannot be opened or is of another version."""


class DamagedCatalogError(CatalogError):
    """The catalog's file is not what SQLite wrote."""


class ClipError(CogcacheError):
    """One clip cannot be done; it becomes a failure row and the run goes on.

    Args:
        reason: a short stable name, such as ``no_video_stream``, to count and filter by.
        problem: what is wrong, for a reader.
        hint: what to do next.
    """

    def __init__(self, reason: str, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.reason = reason


class VideoError(ClipError):
    """The video file cannot be read, or holds nothing to see."""


class FeaturesError(ClipError):
    """The features of a clip are not usable numbers."""
