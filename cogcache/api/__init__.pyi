from .cache import Cache as Cache
from .cache import Captions as Captions
