from .exporting import Exported as Exported
from .exporting import Options as Options
from .exporting import export as export
from .exporting import export_beside as export_beside
from .exporting import format_of as format_of
from .feature_pack import pack as pack
from .importing import import_captions as import_captions
from .wording import Wording as Wording
