"""Numbers as they are typed: messages say what a number is, and thousands may have commas."""

from __future__ import annotations

import re
from typing import Any, Final

import click

_WITH_COMMAS: Final = re.compile(r"[1-9]\d{0,2}(,\d{3})+")


class Whole(click.IntRange):
    """A whole number within bounds: `10000`, or `10,000` as listings print it."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        if isinstance(value, str) and _WITH_COMMAS.fullmatch(value):
            value = value.replace(",", "")
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return _in_words(super()._describe_range())


class Real(click.FloatRange):
    """A number within bounds."""

    name = "number"

    def _describe_range(self) -> str:
        return _in_words(super()._describe_range())


def _in_words(bounds: str) -> str:
    """Return bounds as click writes them, `x>=1`, as words where that is short."""
    least = re.fullmatch(r"x>=(-?[\d.]+)", bounds)
    between = re.fullmatch(r"(-?[\d.]+)<=x<=(-?[\d.]+)", bounds)
    if least:
        return f"{least[1]} or more"
    return f"{between[1]} to {between[2]}" if between else bounds
