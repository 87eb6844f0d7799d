from .api.cache import Cache as Cache
from .catalog.catalog import Catalog as Catalog
from .errors import CogcacheError as CogcacheError
from .models.halves.load import load_half as load_half
from .models.registry import get_family as get_family
from .settings.settings import Settings as Settings
from .settings.settings import load_settings as load_settings
from .stages.caption import caption as caption
from .stages.extract import extract as extract
from .stages.runs.report import RunReport as RunReport
from .store.store import FeatureStore as FeatureStore

__version__: str
