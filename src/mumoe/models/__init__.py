"""Backbones, their cached features, and the models built on them."""
