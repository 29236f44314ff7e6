"""Configures Sphinx, which builds the site: `make docs`.

The site's source is the repository's own Markdown, so that no page exists twice.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import keys  # noqa: E402

from vggexp import __version__ as release  # noqa: E402

project = "vggexp"
author = "the authors of vggexp"
version = release
language = "en"
copyright = "the authors of vggexp, MIT license"
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
html_extra_path = ["front"]  # the top page, which links to docs/
# Pages without sections have no sidebar.
html_sidebars = {page: [] for page in ("README", "docs/index", "docs/keys", "docs/tutorial*")}
html_static_path = ["static"]
html_css_files = ["site.css"]
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
