"""Settings of a run that is one of several on one cache or one list of videos."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from cogcache.settings_base import NoneIfEmpty, Table
from cogcache.shards import Shard


def _is_shard(text: str | None) -> str | None:
    return None if text is None else str(Shard.parse(text))


class Machines(Table):
    """A run that is one of several. Part of no key."""

    shard: Annotated[str | None, AfterValidator(_is_shard), NoneIfEmpty] = None
    """Do only the I-th of N shares, counted from 1, as `3/16`; which share a clip is in is decided
    by the digest of its video, and does not change when the list of videos grows."""
