"""The version of the catalog's tables: apart from the steps to it, which are dear to import."""

from typing import Final

VERSION: Final = 5
"""The number of the last step of `migrations`; a catalog with a higher one is of a newer
cogcache."""
