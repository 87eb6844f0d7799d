from .demonstration import MIN_SHARE as MIN_SHARE
from .demonstration import Demonstration as Demonstration
from .demonstration import demonstrate as demonstrate
from .doctor import examine as examine
from .measure import NUM_CLIPS as NUM_CLIPS
from .measure import measure as measure
from .verify_model import ModelCheck as ModelCheck
