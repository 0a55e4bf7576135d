"""Every table and figure of the paper, and the studies of docs/results; part of the repository, not of the wheel.

    python -m reproduction list
    python -m reproduction run table-6 --scale small

An item (``items/items.toml``) is what the paper shows. A recipe, one TOML file in ``items/exact``, ``small`` or
``full``, holds the values it is made with. ``items/printed.json`` has the numbers that the paper prints.
"""
