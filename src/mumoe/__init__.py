"""Multilinear mixture-of-experts layers (arXiv 2402.12550): thousands of experts, inspectable, editable."""

__version__ = "0.1.0.dev0"
