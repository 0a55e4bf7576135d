"""A run in the browser: browse its experts, edit them, and see what each edit changes.

- `whatif` computes what edits do to every image, from what is cached.
- `session` is one opened run; `expert_panel`, `image_panel`, `edit_panel` and `apart` answer requests about it.
- `guard` authenticates requests; `app` maps addresses to answers; `server` runs it.

The front end under `static/` is plain JavaScript modules on Preact and htm, without a build step.
"""

from mumoe.errors import require

WHO = "dashboard"
"""What errors name."""

for _package in ("starlette", "uvicorn"):
    require(_package, "dashboard", WHO)
