"""Every table and figure of the paper as a recipe: `mumoe paper list`, `mumoe paper run table-6 --scale small`.

An item (`items.toml`) is what the paper shows; a recipe (``exact/``, ``small/``, ``full/``, one TOML file per item)
holds the values it is made with. The numbers that the paper prints are in `printed.json`, each with its place.
"""
