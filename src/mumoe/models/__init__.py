"""Whole networks: backbones, heads, and the classifier that joins them."""
