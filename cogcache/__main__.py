"""``python -m cogcache``: the same as ``cogcache``."""

from cogcache.cli import main

if __name__ == "__main__":
    main(prog_name="cogcache")
