"""Configures Sphinx, which builds the site: `make docs`.

The site's source is the repository's own Markdown, so that no page exists twice.
"""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vggexp import __version__ as release  # noqa: E402

project = "vggexp"
author = "the authors of vggexp"
version = release
language = "en"
copyright = "the authors of vggexp, MIT license"
extensions = ["myst_parser", "sphinx_copybutton"]
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"  # a copied session holds its commands alone
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
html_sidebars = {
    page: [] for page in ("README*", "docs/index", "docs/keys", "docs/tutorial*", "docs/commands")
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "docs/index": []},
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "show_toc_level": 2,
}


COMMAND = re.compile(
    r"#!/bin/bash|(python3?|pip|make|tensorboard|vggexp|torchrun|sbatch|srun|export|git) "
)


def set_language(app: Any, doctree: nodes.document) -> None:
    """Highlights the blocks without a language: sessions, commands, or plain text."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language", "default") != "default":
            continue
        text = block.astext()
        if text.startswith("$ ") or "\n$ " in text:
            block["language"] = "console"
        else:
            block["language"] = "bash" if COMMAND.match(text) else "text"


def setup(app: Any) -> None:
    app.connect("doctree-read", set_language)
