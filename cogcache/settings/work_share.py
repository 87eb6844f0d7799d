"""Which part of the work one run does, where several runs divide it in advance."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class WorkShare:
    """The ``number``-th of ``of`` parts, counted from 1.

    Digests alone decide what a part holds: adding or removing videos moves no other video.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Return the work share that ``3/16`` names; None is everything.

        Raises:
            ValueError: it names none.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        number, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= of:
            raise ValueError(
                f"{text!r} is no shard: write I/N with I from 1 to N, such as 3/16 "
                "(an array of jobs from 1 to 16: --array=1-16)"
            )
        return cls(number, of)

    def has(self, digest: str) -> bool:
        """Say whether what has this digest, in hexadecimal, belongs to the share."""
        return int(digest[:16], 16) % self.of == self.number - 1

    def has_name(self, name: str) -> bool:
        """Say whether something that has no digest belongs to the share, by its name."""
        return self.has(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def __bool__(self) -> bool:
        return self.of > 1
