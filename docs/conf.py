"""The site: `make docs` builds it without network, and warnings are errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE / "_ext")]
# Documented code need not compute: one thread, and no access to a model hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mumoe  # noqa: E402

project = "mumoe"
author = "the mumoe authors"
version = release = mumoe.__version__
html_title = f"mumoe {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "local_mathjax",
    "pages",
    "summaries",
    "verbs",
]
exclude_patterns = ["_build", "_ext", "results/*/table.md"]  # these tables are in the READMEs beside them
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
nitpicky = True
# Annotations name other projects' classes: checking them would need their inventories, and so the network.
nitpick_ignore_regex = [("py:class", ".*")]

default_role = "code"
smartquotes = False  # quotes, dashes and dots are shown as they are written
autosummary_generate = False
# The button copies the code of an example, without prompts and output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "none"}}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Cost", "Source"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_dmath_allow_space = myst_dmath_allow_digits = False  # a dollar before a blank or after a digit is a dollar
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"  # of a package that furo brings
pygments_dark_style = "github-dark"
