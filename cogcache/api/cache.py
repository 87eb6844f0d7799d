"""`Cache`: a cache folder, for use in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.api.progress import progress_bar
from cogcache.catalog import Catalog, path_to_text
from cogcache.errors import CogcacheError, ConfigError
from cogcache.settings import NO_MODEL, Settings, known_part, load_settings, parse_prompts
from cogcache.stages import StageRequest, ask_stage, remembered
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, extra_hint, is_url

if TYPE_CHECKING:
    from torch import Tensor

    from cogcache.catalog import Stage

Paths = str | Path | Sequence[str | Path]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Captions:
    """The captions of a cache: iterates over rows, named as in every listing."""

    rows: Rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            problem = "to_pandas needs pandas, which is not installed"
            raise ConfigError(problem, f"pip install pandas, or {extra_hint('dev')}") from error
        return pandas.DataFrame(self.rows)


class Cache:
    """A cache folder: encode videos into it, caption from it, read what it holds.

    Each call of `extract` and `caption` runs its stage in a process of its own and returns when
    that has ended. Give settings by name, as on the command line: ``max_frames=12``. For all
    others, the stage uses what the cache remembers, else the defaults.

    Args:
        folder: of the cache; `extract` makes it if absent.

    Example:
        >>> cache = Cache("cache")  # doctest: +SKIP
        >>> cache.extract("clips/", model="Qwen/Qwen2.5-VL-3B-Instruct")  # doctest: +SKIP
        >>> rows = cache.caption(["What is the weather like?"])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def extract(self, videos: Paths, **settings: Any) -> dict[str, Any]:
        """Encode videos into the cache; return the run's report, as `--json` prints it.

        Args:
            videos: a path, or several: files, folders, patterns, `@list.txt`.
            settings: by name.

        Raises:
            CogcacheError: the stage could not do its work; its own message is on stderr.

        Example:
            >>> Cache("cache").extract("clips/", model="tiny", max_frames=12)  # doctest: +SKIP
        """
        return self._stage("extract", videos, settings)

    def caption(
        self,
        prompts: str | Sequence[str] | Mapping[str, str] = (),
        videos: Paths | None = None,
        **settings: Any,
    ) -> Rows:
        """Caption the cached clips; return the rows of these prompts' captions.

        Args:
            prompts: a text, several, or texts by name; none for the default one.
            videos: only clips of these; None for all.
            settings: by name.

        Raises:
            CogcacheError: the stage could not do its work; its own message is on stderr.

        Example:
            >>> rows = Cache("cache").caption({"color": "What color is it?"})  # doctest: +SKIP
        """
        if isinstance(prompts, Mapping):
            named = dict(prompts)
        else:
            named = parse_prompts([prompts] if isinstance(prompts, str) else list(prompts))
        asked = {**settings, **({"prompts": named} if named else {})}
        self._stage("caption", videos, asked)
        texts = {*self._settings(asked).prompts}
        return [row for row in self.captions() if row["prompt_name"] in texts]

    def captions(self, **filters: Any) -> Captions:
        """Return the captions that pass the filters, sorted by video and start.

        Args:
            filters: of `cogcache.Catalog`'s captions: `video`, `prompt_name`, `model`.

        Example:
            >>> for row in Cache("cache").captions(prompt_name="color"):  # doctest: +SKIP
            ...     print(row["video"], row["caption"])
        """
        with Catalog(self._catalog()) as catalog:
            return Captions([dict(row) for row in catalog.captions.rows(**filters)])

    def features(self, video: str | Path, start_s: float = 0.0) -> dict[str, Tensor]:
        """Return the features of a clip as torch tensors by name, in the type they are stored in.

        Args:
            video: its file, by the path that listings show.
            start_s: where the clip begins, in seconds of the video.

        Raises:
            ConfigError: the cache has no features of this clip, or of several settings.

        Example:
            >>> Cache("cache").features("clips/clip-00.mp4")["features"].shape  # doctest: +SKIP
        """
        name = str(video) if is_url(str(video)) else path_to_text(Path(video).absolute())
        with Catalog(self._catalog()) as catalog:
            rows = [row for row in catalog.clips.rows() if row["start_s"] == start_s]
        keys = {row["feature_key"] for row in rows if row["video"] in (name, str(video))}
        if len(keys) != 1:
            problem = (
                f"the cache has {len(keys) or 'no'} sets of features of {video} at {start_s} s"
            )
            raise ConfigError(problem, "`cogcache ls clips` lists them")
        return dict(FeatureStore.open(self.folder).read(keys.pop()).tensors)

    def _catalog(self) -> Path:
        FeatureStore.open(self.folder)
        path = CachePaths(self.folder).catalog
        if not path.is_file():
            raise ConfigError(f"{self.folder} has no catalog yet", "fill it with extract()")
        return path

    def _settings(self, asked: Mapping[str, Any]) -> Settings:
        settings = load_settings(None, asked)
        found = remembered(self.folder, settings.profile or None, settings.model or None)
        if found is None:
            return settings
        profile = {name: each for name, each in known_part(found[1]).items() if name != "clips"}
        return load_settings(None, asked, profile)

    def _stage(
        self, stage: Stage, videos: Paths | None, asked: Mapping[str, Any]
    ) -> dict[str, Any]:
        settings = self._settings(asked)
        if not settings.model:
            raise ConfigError(NO_MODEL, "name one: model='tiny', a folder, or a hub id")
        names = () if videos is None else as_names(videos)
        request = StageRequest(stage=stage, cache=self.folder, settings=settings, videos=names)
        with progress_bar(self.folder, stage) as bar:
            result = ask_stage(request, quiet=True)
            bar.end(result.report)
        if result.report is None:
            problem = f"{stage} ended with exit status {result.exit_status}"
            raise CogcacheError(problem, "its message is on the standard error stream")
        del result.report["told"]
        return result.report


def as_names(videos: Paths) -> tuple[str, ...]:
    """Return one path or several as texts; a single text is one path."""
    if isinstance(videos, str | Path):
        return (str(videos),)
    return tuple(map(str, videos))
