"""How an export changes the text of captions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# All that some reader takes for the end of a line, and the tab, which others split at.
_BREAKS: Final = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029 ]+")


@dataclass(frozen=True, slots=True)
class Wording:
    """Texts that are added to each caption."""

    prefix: str = ""
    """Put before it as it stands."""
    suffix: str = ""
    trigger: str = ""
    """A word before everything else, followed by a blank."""

    def around(self, caption: str) -> str:
        """Return the caption with all that belongs around it; an empty one stays empty."""
        if not caption.strip():
            return ""
        trigger = f"{self.trigger} " if self.trigger else ""
        return f"{trigger}{self.prefix}{caption}{self.suffix}"


def one_line(text: str) -> str:
    """Return ``text`` on one physical line, whatever its reader takes for a line's end."""
    # NUL and a byte order mark break readers as well, and say nothing.
    return _BREAKS.sub(" ", text.replace("\0", "").replace("\ufeff", "")).strip()


def num_words(text: str) -> int:
    """Return the number of words, separated by white space."""
    return len(text.split())
