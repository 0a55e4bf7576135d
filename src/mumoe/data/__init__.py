"""Named image sets, read from local folders first, as one `ImageData` each.

Names are imported when they are first used, so that `mumoe.data.base` needs numpy alone.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
