from .choices import LanguageChoice as LanguageChoice
from .choices import StagePlan as StagePlan
from .fitted import Fitted as Fitted
from .fitted import LanguageLoader as LanguageLoader
from .fitted import LoadNotes as LoadNotes
from .fitted import VisionLoader as VisionLoader
from .plan import make_plan as make_plan
