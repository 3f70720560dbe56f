# The settings of a program that imports this file by its path: docs/ is no package.
# ruff: noqa: INP001
"""Sphinx's settings for the site: ``make docs`` builds it, and every warning is an error."""

project = "Process Manager"
copyright = "the Process Manager authors, Apache-2.0"  # noqa: A001 Sphinx's own name
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"
nitpicky = True

# Headings are link targets down to this level, as on GitHub; a link to one that is not there is a warning.
myst_heading_anchors = 4
# Files outside docs/ are code and deployment files: the site offers them as they are.
myst_enable_extensions = ["html_image"]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "Process Manager"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
