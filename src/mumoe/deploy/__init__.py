"""Use the results of a run: a model that loads anywhere, predictions with their experts, files for other runtimes.

Names are imported when they are first used; `mumoe.load` is the entry point.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
