"""Versions of captions: make them, read them, undo them."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import uuid4

from cogcache.catalog import (
    EDITED,
    CaptionRow,
    Catalog,
    EditRow,
    ReviewState,
    Selection,
    edited_key,
)
from cogcache.errors import ConfigError

SET: Final = "reviewed"
"""The set that edits go to by default."""
_MAX_TEXT: Final = 2**15
"""Letters of a caption, as `import` has it."""
_MAX_TAG: Final = 100


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A caption and its reviews."""

    caption: CaptionRow
    """The caption as a model wrote it, or as it was imported."""
    version: EditRow | None = None
    """The newest version; None if nobody has reviewed the caption."""

    @property
    def key(self) -> str:
        """The key of the caption."""
        return self.caption["caption_key"]

    @property
    def text(self) -> str:
        """What the caption says now."""
        edited = self.version["text"] if self.version else None
        return self.caption["caption"] if edited is None else edited

    @property
    def is_edited(self) -> bool:
        """Whether its text differs from what the model wrote."""
        return self.version is not None and self.version["text"] is not None

    @property
    def state(self) -> ReviewState:
        """`accepted`, `rejected`, or "" if nobody has decided."""
        return self.version["state"] if self.version else ""

    @property
    def tags(self) -> list[str]:
        """Its tags, in order."""
        return self.version["tags"] if self.version else []

    @property
    def uid(self) -> str:
        """The name of the newest version; "" if there is none."""
        return self.version["uid"] if self.version else ""

    def row(self) -> dict[str, Any]:
        """Return the caption's row as it is now, with state and tags."""
        now = {"caption": self.text, "state": self.state, "tags": self.tags}
        return {**self.caption, **now, "edited": self.is_edited, "version": self.uid}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a review."""

    changed: int = 0
    same: int = 0
    """Captions that were in this state already, or that have nothing to undo."""
    conflicts: list[str] = field(default_factory=list)
    """Keys of captions that were reviewed by somebody else meanwhile. Nothing was changed of
    those that would have been, or, where a go is taken back, nothing of these."""
    batch: str = ""
    """Undoes all of it at once."""


class Reviews:
    """The reviews of one set in a catalog.

    Args:
        catalog: it has the captions.
        set_name: name of the set that edited captions belong to.
        author: the reviewer; None for the name of the user.

    Raises:
        ConfigError: the name of the set or of the author is empty or cannot be printed.

    Example:
        >>> reviews = Reviews(catalog)  # doctest: +SKIP
        >>> reviews.edit(reviews.chosen(Selection())[0], "A red ball rolls.")  # doctest: +SKIP
    """

    def __init__(self, catalog: Catalog, set_name: str = SET, author: str | None = None) -> None:
        self.catalog, self.set_name = catalog, set_name
        self.author = author if author is not None else _user()
        for name in (set_name, self.author or "nobody"):
            if not name.strip() or not name.isprintable():
                raise ConfigError(f"{name!r} cannot be a name", "use letters")

    # ---- which ------------------------------------------------------------------------------

    def chosen(
        self, selection: Selection | None = None, numbers: Collection[int] | None = None
    ) -> list[Reviewed]:
        """Return captions with their reviews, each once, by video, start and age.

        Args:
            selection: filters; None for all.
            numbers: of captions, as `ls` has them as `id`; None for all.

        Raises:
            ConfigError: there is no caption of a number.
        """
        rows = _rows(self.catalog, selection or Selection(), numbers)
        edited = [row["caption_key"] for row in rows if row["quantization"] == EDITED]
        sources = self.catalog.edits.sources(edited)
        wanted = [sources.get(row["caption_key"], row["caption_key"]) for row in rows]
        of_key = {row["caption_key"]: row for row in rows}
        if missing := {key for key in wanted if key not in of_key}:
            of_key |= {row["caption_key"]: row for row in self.catalog.captions.of_keys(missing)}
        found = [of_key[key] for key in dict.fromkeys(wanted) if key in of_key]
        current = self.catalog.edits.current([row["caption_key"] for row in found], self.set_name)
        return [Reviewed(row, current.get(row["caption_key"])) for row in found]

    def of_keys(self, caption_keys: Collection[str]) -> dict[str, Reviewed]:
        """Return the captions with these keys, without those that do not exist."""
        current = self.catalog.edits.current(caption_keys, self.set_name)
        rows = self.catalog.captions.of_keys(caption_keys)
        return {row["caption_key"]: Reviewed(row, current.get(row["caption_key"])) for row in rows}

    # ---- what is done -----------------------------------------------------------------------

    def accept(
        self, captions: Sequence[Reviewed], latest: Mapping[str, str] | None = None
    ) -> Outcome:
        """Accept captions; `latest` as in `edit`."""
        return self.change(captions, "accept", lambda _: {"state": "accepted"}, latest)

    def reject(
        self, captions: Sequence[Reviewed], latest: Mapping[str, str] | None = None
    ) -> Outcome:
        """Reject captions; `latest` as in `edit`."""
        return self.change(captions, "reject", lambda _: {"state": "rejected"}, latest)

    def tag(
        self,
        captions: Sequence[Reviewed],
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        latest: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Add tags to captions and remove others; `latest` as in `edit`.

        Raises:
            ConfigError: a tag is empty, too long, or cannot be shown.
        """
        for tag in (*add, *remove):
            if not tag.strip() or not tag.isprintable() or len(tag) > _MAX_TAG:
                raise ConfigError(f"{tag[:_MAX_TAG]!r} cannot be a tag", "use a word or two")

        def tags(each: Reviewed) -> dict[str, Any]:
            kept = dict.fromkeys([*each.tags, *(tag.strip() for tag in add)])
            return {"tags": [tag for tag in kept if tag not in remove]}

        return self.change(captions, "tag", tags, latest)

    def edit(
        self, caption: Reviewed, text: str, latest: Mapping[str, str] | None = None
    ) -> Outcome:
        """Replace the text of a caption; that accepts it.

        Args:
            caption: which.
            text: the new text.
            latest: by caption, the version that the reviewer saw. If there is a newer one,
                nothing is changed.

        Raises:
            ConfigError: there is nothing in the text, or too much.
        """
        return self.rewrite({caption.key: text}, [caption], "edit", latest)

    def rewrite(
        self,
        texts: Mapping[str, str],
        captions: Sequence[Reviewed],
        action: str = "replace",
        latest: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Replace the texts of many captions at once.

        Editing a single caption accepts it; a replacement in bulk does not.

        Raises:
            ConfigError: there is nothing in a text, or too much.
        """
        for text in texts.values():
            check_text(text)

        def edited(each: Reviewed) -> dict[str, Any]:
            text = texts[each.key].strip()
            is_own = text == each.caption["caption"].strip()
            state = {"state": "accepted"} if action == "edit" else {}
            return {"text": None if is_own else text, **state}

        return self.change(captions, action, edited, latest)

    def change(
        self,
        captions: Sequence[Reviewed],
        action: str,
        change: Callable[[Reviewed], dict[str, Any]],
        latest: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Give captions new versions; `change` says what is new, `latest` is as in `edit`."""
        batch, versions, same = uuid4().hex, [], 0
        for each in captions:
            version = _version(self, each, action, batch, change(each))
            if _content(version) == _content(each.version or _BLANK):
                same += 1
            else:
                versions.append(version)
        # What was read a moment ago is what is changed: another's review must not be lost.
        if others := self.catalog.edits.add(versions, _seen(versions, captions, latest)):
            return Outcome(0, same, others)
        return Outcome(len(versions), same, [], batch if versions else "")

    # ---- taken back -------------------------------------------------------------------------

    def undo(
        self, captions: Sequence[Reviewed], latest: Mapping[str, str] | None = None
    ) -> Outcome:
        """Undo the last change of each caption; called again, the change before that."""
        pairs = [(each, _last(self.catalog, each, self.set_name)) for each in captions]
        there = [(each, last) for each, last in pairs if last is not None]
        return self._take_back(there, len(pairs) - len(there), latest)

    def undo_batch(self, batch: str | None = None) -> Outcome:
        """Undo all changes of one command: the last one, or the one with this name.

        Captions that were reviewed since stay as they are and are reported as conflicts.
        """
        batch = batch or self.catalog.edits.last_batch(self.set_name)
        versions = self.catalog.edits.of_batch(batch) if batch else []
        versions = [each for each in versions if each["set_name"] == self.set_name]
        captions = self.of_keys([version["caption_key"] for version in versions])
        pairs, others = [], []
        for version in versions:
            each = captions.get(version["caption_key"])
            last = _last(self.catalog, each, self.set_name) if each else None
            if each is None or last is None or last["uid"] != version["uid"]:
                others.append(version["caption_key"])
            else:
                pairs.append((each, last))
        done = self._take_back(pairs, 0, None)
        return Outcome(done.changed, done.same, [*others, *done.conflicts], done.batch)

    def _take_back(
        self,
        pairs: Sequence[tuple[Reviewed, EditRow]],
        same: int,
        latest: Mapping[str, str] | None,
    ) -> Outcome:
        batch = uuid4().hex
        versions = []
        for each, last in pairs:
            before = _before(self.catalog, each, last) or _BLANK
            change = {name: before[name] for name in _BLANK}
            version = _version(self, each, "undo", batch, change | {"undoes": last["uid"]})
            versions.append(version)
        seen = _seen(versions, [each for each, _ in pairs], latest)
        others = self.catalog.edits.add(versions, seen)
        return Outcome(0 if others else len(versions), same, others, batch)


def reopen(reviews: Reviews, captions: Sequence[Reviewed], before: Mapping[str, str]) -> Outcome:
    """Note that captions were made again: nobody has reviewed them as they are now.

    Args:
        reviews: of the set.
        captions: which.
        before: what they said before, by key.
    """

    def opened(each: Reviewed) -> dict[str, Any]:
        return {"state": "", "text": None, "was": before.get(each.key, each.text)}

    return reviews.change(captions, "remade", opened)


_BLANK: Final[Mapping[str, Any]] = {"text": None, "state": "", "tags": []}
"""The state of a caption that nobody has reviewed."""


def _rows(
    catalog: Catalog, selection: Selection, numbers: Collection[int] | None
) -> list[CaptionRow]:
    where, values = selection.where()
    rows = {row["id"]: row for row in catalog.captions.rows()}
    if where:
        passing = catalog.captions.passing(where, values)
        rows = {number: row for number, row in rows.items() if number in passing}
    if numbers is None:
        return [*rows.values()]
    if absent := [number for number in numbers if number not in rows]:
        hint = "`cogcache review list` shows the numbers as id"
        raise ConfigError(f"there is no caption {absent[0]}", hint)
    return [rows[number] for number in dict.fromkeys(numbers)]


def _version(
    reviews: Reviews, each: Reviewed, action: str, batch: str, changes: Mapping[str, Any]
) -> EditRow:
    version: dict[str, Any] = {
        "uid": uuid4().hex,
        "caption_key": each.key,
        "edited_key": edited_key(reviews.set_name, each.caption),
        "set_name": reviews.set_name,
        "action": action,
        "text": each.version["text"] if each.version else None,
        "was": each.text,
        "state": each.state,
        "tags": each.tags,
        "author": reviews.author,
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "batch": batch,
        "undoes": "",
    }
    return cast(EditRow, version | dict(changes))


def _content(version: Mapping[str, Any]) -> dict[str, Any]:
    return {name: version[name] for name in _BLANK}


def _standing(catalog: Catalog, each: Reviewed, set_name: str) -> list[EditRow]:
    """Return the versions of a caption that were not undone, oldest first."""
    stack: list[EditRow] = []
    for version in catalog.edits.history(each.key, set_name):
        if version["undoes"]:
            stack = [kept for kept in stack if kept["uid"] != version["undoes"]]
        else:
            stack.append(version)
    return stack


def _last(catalog: Catalog, each: Reviewed, set_name: str) -> EditRow | None:
    return next(iter(reversed(_standing(catalog, each, set_name))), None)


def _before(catalog: Catalog, each: Reviewed, last: EditRow) -> Mapping[str, Any] | None:
    standing = _standing(catalog, each, last["set_name"])
    place = [version["uid"] for version in standing].index(last["uid"])
    return standing[place - 1] if place else None


def _seen(
    versions: Sequence[EditRow], captions: Sequence[Reviewed], latest: Mapping[str, str] | None
) -> dict[str, str]:
    """Return, for the captions that get a version, the one that was seen last."""
    seen = {each.key: each.uid for each in captions} | dict(latest or {})
    return {version["caption_key"]: seen[version["caption_key"]] for version in versions}


def check_text(text: str) -> None:
    """Refuse an empty or too long caption.

    Raises:
        ConfigError: there is nothing in it, or too much.
    """
    if not text.strip():
        raise ConfigError("nothing would be left of a caption", "reject it: `cogcache review`")
    if len(text) > _MAX_TEXT:
        problem = f"a caption would have more than {_MAX_TEXT} letters"
        raise ConfigError(problem, "write a shorter one")
    if "\0" in text:
        raise ConfigError("a caption would hold a NUL", "leave it out")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have a number for a user, and no name
        return "unknown"
