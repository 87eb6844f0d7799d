from .app import address as address
from .app import serve as serve
from .editing import Editing as Editing
from .gallery import write_gallery as write_gallery
from .report import write_report as write_report
