from .differences import Part as Part
from .differences import differences as differences
from .replacing import Rewriting as Rewriting
from .replacing import Rewritten as Rewritten
from .reviews import SET as SET
from .reviews import Outcome as Outcome
from .reviews import Reviewed as Reviewed
from .reviews import Reviews as Reviews
