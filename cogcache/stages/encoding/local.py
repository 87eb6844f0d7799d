"""The work of stage one by this process: its decode workers, its vision half, its sealing thread.

It knows no catalog and no claims: clips in, what became of them out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol, Self

from cogcache.errors import ClipError
from cogcache.models import Family
from cogcache.settings import Settings
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.encoding.frame_reuse import Neighbours, no_neighbours
from cogcache.stages.encoding.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.stages.runs.report import RunReport
from cogcache.store import FeatureStore
from cogcache.system import Fetching, Spool
from cogcache.video import decode_limits, map_unordered

if TYPE_CHECKING:
    from cogcache.stages.encoding.feature_maker import FeatureMaker, Outcome

Prepared = tuple[Clip, PreparedClip | ClipError]


class _End:
    """Comes after the last of something."""


_END: Final = _End()


def decoded_ahead(settings: Settings) -> int:
    """Return how many clips may be in the decoders' hands, or decoded, while others are encoded.

    Less than the clips of a batch would leave the decoders idle while one is encoded; the rest
    evens out clips that take longer than others.
    """
    of_a_batch = ceil(settings.vision.frames_per_batch / settings.sampling.max_frames)
    return of_a_batch + 2 * settings.vision.decode_workers


class Encoding(Protocol):
    """Makes the features of clips, here or elsewhere."""

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done; they are taken up as there is room.

        Args:
            clips: None says that there is none just now; what is in hand is made meanwhile.
        """


class LocalEncoding(AbstractContextManager["LocalEncoding"]):
    """Makes the features of clips in this process.

    Args:
        settings: of the run.
        family: of the checkpoint, at the cache point.
        store: where features are sealed.
        report: is told the plan, the bytes read and the times.
        neighbours: keys of clips in the store that may share frames with a clip.
    """

    def __init__(
        self,
        settings: Settings,
        family: Family,
        store: FeatureStore,
        report: RunReport,
        neighbours: Neighbours = no_neighbours,
    ) -> None:
        self.settings, self.family, self.store, self.report = settings, family, store, report
        self._neighbours = neighbours
        self._maker: FeatureMaker | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done."""
        # Before the weights: the workers decode while those are read.
        prepared = self._prepare(clips)
        maker = self._loaded()
        batch: list[tuple[Clip, PreparedClip]] = []
        for each in self._timed(prepared):
            if each is None:  # reading or a search may last: what waits for company is made without
                yield maker.make(batch) if batch else []
                yield maker.finish()
                batch = []
                continue
            clip, result = each
            if isinstance(result, ClipError):
                yield [(clip, result)]
            else:
                batch.append((clip, result))
            if sum(each.num_frames for _, each in batch) >= maker.frames_per_batch:
                yield maker.make(batch)
                batch = []
        yield maker.make(batch) if batch else []
        yield maker.finish()

    def _loaded(self) -> FeatureMaker:
        from cogcache.stages.encoding.feature_maker import FeatureMaker

        if self._maker is None:
            maker = FeatureMaker(
                self.settings, self.family, self.store, self.report, self._neighbours
            )
            self._maker = self._open.enter_context(maker)
        return self._maker

    def _prepare(self, clips: Iterable[Clip | None]) -> Iterator[Prepared | None]:
        """Start the decode workers; the iterator gives each clip, prepared or failed.

        It gives None while there is no clip just now and none is in hand.
        """
        settings, vision = self.settings, self.settings.vision
        clips_of: dict[ClipSource, Clip] = {}

        def sources() -> Iterator[ClipSource | None]:
            for clip in clips:
                if clip is None:
                    yield None
                    continue
                source = ClipSource(
                    clip.video,
                    *clip.span,
                    settings.sampling,
                    clip.key.video_digest,
                    clip.seen,
                    vision.decoder,
                )
                clips_of[source] = clip
                yield source

        results = map_unordered(
            Fetching(prepare, Spool.of_this_machine(settings.machines.spool_gib)),
            sources(),
            workers=vision.decode_workers,
            limits=decode_limits(vision),
            ahead=decoded_ahead(settings),
            initializer=partial(
                start_worker,
                settings.model,
                settings.revision,
                vision.vision_dtype,
                settings.limits.strict,
            ),
        )
        # What ends a run early holds on to the generator, and so to its workers, for a while.
        self._open.enter_context(closing(results))
        return (each and (clips_of.pop(each[0]), each[1]) for each in results)

    def _timed(self, prepared: Iterator[Prepared | None]) -> Iterator[Prepared | None]:
        """Count the time spent waiting for the decoders, and for clips to decode."""
        while True:
            began_s = time.perf_counter()
            item = next(prepared, _END)
            part = "wait_for_clips" if item is None else "wait_for_frames"
            self.report.split.add(part, time.perf_counter() - began_s)
            if isinstance(item, _End):
                return
            yield item
