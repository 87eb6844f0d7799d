"""Errors from inside a processor of transformers, as errors that say what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cogcache.errors import UnknownFamilyError, VideoError
from cogcache.models.derived.features import version_text

CLASH: Final = (
    TypeError, AttributeError, LookupError, ImportError, NotImplementedError, NameError,
)  # fmt: skip
"""What a processor raises that is called in a way it does not know, whatever the clip is."""


@dataclass(frozen=True)
class Explainer:
    """Words the errors of one family's processor."""

    family: str

    def refusal(self, problem: str) -> UnknownFamilyError:
        """Return the error for a processor that does not work with this transformers."""
        hint = "install another transformers, or report the model"
        return UnknownFamilyError(
            f"{self.family}: the processor cannot be used with {version_text()}: {problem}", hint
        )

    @contextmanager
    def explained(self, call: str, *, of_clip: bool = False) -> Iterator[None]:
        """Reword what a `with` block raises.

        Args:
            call: the function that is called in it.
            of_clip: whether it is given frames: a ValueError may then be about these.

        Raises:
            UnknownFamilyError: the processor does not know this way to call it.
            VideoError: it does not take these frames.
        """
        try:
            yield
        except CLASH as error:
            named = re.search(r"argument:? '?(\w+)", str(error))
            argument = f" (argument {named[1]})" if named else ""
            raise self.refusal(f"{call}{argument}: {error}") from error
        except (ValueError, OSError) as error:
            if not of_clip:
                raise self.refusal(f"{call}: {error}") from error
            problem = f"the processor of {self.family} does not take these frames: {error}"
            raise VideoError("not_processable", problem, "leave the video out") from error
