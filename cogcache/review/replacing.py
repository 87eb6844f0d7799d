"""One change for many captions: replace words or patterns, add a beginning or an end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from cogcache.errors import ConfigError
from cogcache.review.reviews import Reviewed, check_text

_MOST_PATTERN: Final = 1000
"""Letters of a pattern."""


class Rewritten(NamedTuple):
    """A caption that a change would alter."""

    reviewed: Reviewed
    after: str


@dataclass(frozen=True)
class Rewriting:
    r"""A change of captions.

    Args:
        old: the words to look for, or with `regex` a pattern of Python's `re`; "" for none.
        new: what stands in their place; with `regex` it may name groups, as ``\1``.
        regex: whether `old` is a pattern. Words are found as whole words, a pattern anywhere.
        ignore_case: whether `Dog` is found as `dog`.
        prefix: put before each caption that does not begin with it.
        suffix: put after each caption that does not end with it.
        trigger: a word to put before each caption, followed by a comma.

    Raises:
        ConfigError: the pattern is invalid, or nothing would be changed.

    Example:
        >>> Rewriting("dog", "wolf").of("A dog, no dogfish.")
        'A wolf, no dogfish.'
    """

    old: str = ""
    new: str = ""
    regex: bool = False
    ignore_case: bool = False
    prefix: str = ""
    suffix: str = ""
    trigger: str = ""

    def __post_init__(self) -> None:
        if not (self.old or self.prefix or self.suffix or self.trigger):
            raise ConfigError("nothing is to be changed", "name OLD and NEW, or give --prefix")
        if len(self.old) > _MOST_PATTERN:
            raise ConfigError(f"OLD has more than {_MOST_PATTERN} letters", "look for less")
        if self.old and self._pattern.match("") and self.regex:
            raise ConfigError(f"{self.old!r} is found in nothing", "write a pattern of some letter")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        flags = re.IGNORECASE if self.ignore_case else 0
        if self.regex:
            try:
                return re.compile(self.old, flags)
            except re.error as error:
                hint = "leave --regex out to look for words"
                raise ConfigError(f"{self.old!r} is no pattern: {error}", hint) from error
        # \b is no border beside a letter that is none of a word: "(a)" would not be found.
        before = r"(?<!\w)" if self.old[:1].isalnum() else ""
        after = r"(?!\w)" if self.old[-1:].isalnum() else ""
        words = f"{before}{re.escape(self.old)}{after}"
        if not self.new:  # of the two blanks around words that are taken out, one stays
            words = rf"(?:(?:^|(?<=\s)){words}[ \t]|[ \t]?{words})"
        return re.compile(words, flags)

    def of(self, text: str) -> str:
        """Return a caption after the change.

        Raises:
            ConfigError: `new` names a group that the pattern does not have.
        """
        if self.old:
            try:
                text = self._pattern.sub(self.new if self.regex else lambda _: self.new, text)
            except (re.error, IndexError) as error:
                hint = "name groups that the pattern has, as \\1"
                raise ConfigError(f"{self.new!r} cannot stand there: {error}", hint) from error
        begin = f"{self.trigger}, " if self.trigger else ""
        for addition in (self.prefix, begin):
            text = text if text.startswith(addition) else addition + text
        return text if text.endswith(self.suffix) else text + self.suffix

    def preview(self, captions: Iterable[Reviewed]) -> list[Rewritten]:
        """Return the captions that would change, with their new texts.

        Raises:
            ConfigError: a caption would become empty or too long.
        """
        found = [Rewritten(each, self.of(each.text)) for each in captions]
        changed = [each for each in found if each.after != each.reviewed.text]
        for each in changed:
            check_text(each.after)
        return changed
