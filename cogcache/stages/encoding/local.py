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
from cogcache.settings import Settings
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.encoding.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.stages.encoding.stage_one import StageOne
from cogcache.stages.runs.report import RunReport
from cogcache.system import CONTEXT, Fetching, Spool
from cogcache.video import decode_limits, map_unordered

if TYPE_CHECKING:
    from cogcache.stages.encoding.clip_encoder import ClipEncoder, Outcome

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
    """Makes the features of clips, in this process or in others."""

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done; they are taken up as there is room.

        Args:
            clips: None says that there is none just now; what is in hand is made meanwhile.
        """


class LocalEncoding(AbstractContextManager["LocalEncoding"]):
    """Makes the features of clips in this process.

    Args:
        stage: the settings, the checkpoint and the store.
        report: gets the plan, the bytes read and the times.
    """

    def __init__(self, stage: StageOne, report: RunReport) -> None:
        self.stage, self.report = stage, report
        self._encoder: ClipEncoder | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done."""
        # Start decoding first: workers decode while the weights are read.
        prepared = self._prepare(clips)
        encoder = self._loaded()
        batch: list[tuple[Clip, PreparedClip]] = []
        for each in self._timed(prepared):
            if each is None:  # reading or a search may last: what waits for company is made without
                yield encoder.make(batch) if batch else []
                yield encoder.finish()
                batch = []
                continue
            clip, result = each
            if isinstance(result, ClipError):
                yield [(clip, result)]
            else:
                batch.append((clip, result))
            if sum(each.num_frames for _, each in batch) >= encoder.frames_per_batch:
                yield encoder.make(batch)
                batch = []
        yield encoder.make(batch) if batch else []
        yield encoder.finish()

    def _loaded(self) -> ClipEncoder:
        from cogcache.stages.encoding.clip_encoder import ClipEncoder

        if self._encoder is None:
            self._encoder = self._open.enter_context(ClipEncoder(self.stage, self.report))
        return self._encoder

    def _prepare(self, clips: Iterable[Clip | None]) -> Iterator[Prepared | None]:
        """Start the decode workers; the iterator gives each clip, prepared or failed.

        It gives None while there is no clip just now and none is in hand.
        """
        settings, vision = self.stage.settings, self.stage.settings.vision
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
                CONTEXT.Semaphore(1),
            ),
        )
        # An exception keeps the generator, and with it the workers, alive for a while.
        self._open.enter_context(closing(results))
        return (each and (clips_of.pop(each[0]), each[1]) for each in results)

    def _timed(self, prepared: Iterator[Prepared | None]) -> Iterator[Prepared | None]:
        """Count the time spent waiting for the decoders, and for clips to decode."""
        while True:
            began_s = time.perf_counter()
            item = next(prepared, _END)
            part = "wait_for_clips" if item is None else "wait_for_frames"
            self.report.timings.add(part, time.perf_counter() - began_s)
            if isinstance(item, _End):
                return
            yield item
