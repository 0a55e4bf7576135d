"""axe-core on a page: what it finds serious or critical, in light and in dark.

The rules are those of the axe-core inside the Python package axe-playwright-python, which pyproject.toml pins. Use it
with a page that `browsing.opened` opened:

    from axe import both_themes, faults

    with opened(browser, url) as watched:
        assert both_themes(watched) == CLEAN
"""

from __future__ import annotations

from typing import Any

__all__ = ["CLEAN", "both_themes", "faults", "outside", "violations"]

SERIOUS = ("serious", "critical")
CLEAN = [([], 0)] * 2
"""What `both_themes` returns of a page without faults."""

# preload would fetch style sheets, which pages opened from disk may not; the other result types take most time
_OPTIONS = {"preload": False, "resultTypes": ["violations"]}


def violations(page: Any) -> list[str]:
    """What axe-core finds serious or critical on playwright's page: one line per rule, with the first elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=_OPTIONS).response["violations"]
    return [
        f"{rule['id']}: {rule['help']} ({'; '.join(node['html'][:120] for node in rule['nodes'][:3])})"
        for rule in found
        if rule["impact"] in SERIOUS
    ]


def faults(watched: Any) -> tuple[list[str], int]:
    """What axe-core finds once nothing is busy, and pixels by which the page is wider than the window."""
    watched.still()
    return violations(watched.page), watched.sideways()


def both_themes(watched: Any) -> list[tuple[list[str], int]]:
    """The faults in dark and in light."""
    found = []
    for theme in ("dark", "light"):
        watched.page.emulate_media(color_scheme=theme)
        found.append(faults(watched))
    return found


_OUTSIDE = """selector => {
  const scrolls = node => ["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(node).overflowX);
  const found = [];
  for (const panel of document.querySelectorAll(selector)) {
    const edge = panel.getBoundingClientRect();
    for (const node of panel.querySelectorAll("*")) {
      const box = node.getBoundingClientRect();
      if (!box.width || !box.height || (box.right <= edge.right + 1 && box.left >= edge.left - 1)) continue;
      let around = node.parentElement;
      while (around !== panel && !scrolls(around)) around = around.parentElement;
      const name = `${node.tagName.toLowerCase()}.${node.className}`;
      if (around === panel) found.push(`${name}: ${node.textContent.slice(0, 60)}`);
    }
  }
  return found;
}"""


def outside(page: Any, panels: str) -> list[str]:
    """Elements that run past the edge of their panel, and are in nothing inside it that scrolls or cuts them."""
    found: list[str] = page.evaluate(_OUTSIDE, panels)
    return found
