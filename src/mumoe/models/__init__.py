"""Backbones, their cached features, and the models built on them; timm and transformers are imported on first use."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
