"""Tables in the pages of the docs that are written from the code, each between two marks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path


def with_table(text: str, page: Path, name: str, body: str) -> str:
    """Return ``text`` with ``body`` between the marks of the table ``name``; exit without them."""
    mark = rf"(?<=<!-- table: {name} -->\n).*?(?=<!-- end -->)"
    text, found = re.subn(mark, lambda _: body, text, flags=re.DOTALL)
    if found != 1:
        sys.exit(f"{page.name} should have one mark <!-- table: {name} -->, not {found}")
    return text


def write_or_check(page: Path, page_of: Callable[[str], str]) -> None:
    """Write a page anew; with ``--check``, exit where it is not what the code says."""
    text = page.read_text()
    if "--check" not in sys.argv:
        page.write_text(page_of(text))
    elif page_of(text) != text:
        sys.exit(f"{page.name} is not what the code says: run `make docs`")
