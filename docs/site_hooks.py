"""What the site does to a page before it is built.

Pages link to files of the source with a path such as `../cogcache/cli`. These are not part of the
site, so the link becomes the file's name in code type.
"""

from __future__ import annotations

import re
from typing import Any, Final

_OUTSIDE: Final = re.compile(r"\[([^\]]*)\]\((\.\./(?:cogcache|benchmarks|tests|configs)[^)]*)\)")
_BESIDE: Final = re.compile(
    r"\[([^\]]*)\]\(\.\./(CHANGELOG|CONTRIBUTING|README|SECURITY)\.md[^)]*\)"
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its links to source files as plain names.

    Example:
        >>> on_page_markdown("see [the scheduler](../cogcache/stages/scheduler.py)")
        'see the scheduler (`cogcache/stages/scheduler.py`)'
    """

    def named(match: re.Match[str]) -> str:
        text, path = match[1].strip("`"), match[2].removeprefix("../")
        return f"`{path}`" if text == path or path.endswith("/" + text) else f"{text} (`{path}`)"

    return _BESIDE.sub(r"\1", _OUTSIDE.sub(named, markdown))
