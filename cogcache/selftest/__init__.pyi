from .demonstration import MIN_SHARE as MIN_SHARE
from .demonstration import Demonstration as Demonstration
from .demonstration import demonstrate as demonstrate
from .doctor import examine as examine
