"""Which of the cached clips of a video are those that a user asks for: by their bounds."""

from __future__ import annotations

from collections.abc import Sequence

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import ClipRow
from cogcache.cutting import known_spans
from cogcache.settings.stage_one import Clips
from cogcache.video.cutting import Span


def within(
    rows: Sequence[ClipRow], spans: Sequence[Span], clips: Clips, catalog: Catalog
) -> list[ClipRow]:
    """Return the clips that are asked for.

    Args:
        rows: clips as the catalog has them.
        spans: parts of videos, as `--clip` names them; none for all.
        clips: how videos are cut; as long as that is not said, and no spans are, all clips fit.
        catalog: knows how long videos are, and where their scenes begin.
    """
    if spans:
        asked = {*spans}
        return [row for row in rows if (row["start_s"], row["end_s"]) in asked]
    if not (clips.segment_s or clips.scenes):
        return list(rows)
    known = known_spans({row["video_digest"] for row in rows}, clips, catalog)
    of_videos = {video: {*cut} for video, cut in known.items()}
    return [
        row
        for row in rows
        if (row["start_s"], row["end_s"]) in of_videos.get(row["video_digest"], ())
    ]
