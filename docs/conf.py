"""The site, by Sphinx: `make docs`. Its source is the repository's own Markdown, so that no page has two homes."""

import sys
from pathlib import Path
from typing import Any

import keys

from vggexp import __version__ as release

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project, author, version, language = "vggexp", "the authors of vggexp", release, "en"
copyright = "the authors of vggexp, MIT licence"
extensions = ["myst_parser"]
myst_heading_anchors = 3
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/*.md",
    "README*.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]

html_theme = "pydata_sphinx_theme"
html_title = f"vggexp {release}"
html_extra_path = ["front"]  # the page at the top, which leads to docs/
html_sidebars = {
    page: [] for page in ("README", "docs/index", "docs/keys", "docs/tutorial*")
}  # have no section
html_static_path, html_css_files = ["static"], ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "show_toc_level": 2,
}


def setup(app: Any) -> None:
    app.connect("builder-inited", lambda _: keys.PAGE.write_text(keys.page(), "utf-8"))
