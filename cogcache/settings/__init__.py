"""What a user can set: frozen, validated once, spelled the same in TOML, options and docs.

In: a TOML file and the options of a command. Out: one `Settings` object, or a `ConfigError` that
names the key. A room above reads settings; none changes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
