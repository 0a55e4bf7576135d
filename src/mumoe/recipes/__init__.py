"""Experiments of the paper as short compositions of the other rooms."""
