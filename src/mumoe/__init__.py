"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable.

Names are imported when they are first used.
"""

from lazy_loader import attach_stub

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
