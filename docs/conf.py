# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The documentation's site: ``make docs`` builds it into ``build/docs``.

Sphinx reads from the root of the repository, so that README, pages and model cards are one tree, whose relative links
hold here as they do where the repository is read as plain Markdown.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "anomalib_comet"
author = "The anomalib_comet authors"
copyright = "2026, The anomalib_comet authors"  # noqa: A001
release = version = installed_version("anomalib-comet")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "src/anomalib_comet/models/*/README.md"]
# Everything else is pruned: an environment alone holds tens of thousands of files.
exclude_patterns = [".*", "build", "dist", "datasets", "lightning_logs", "results", "runs", "tests", "**/__pycache__"]

# Headings are targets of links by the names that code hosting sites give them.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.header"]

autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings name the types
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"anomalib_comet {release}"
html_extra_path = ["_extra"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

linkcheck_timeout = 20
linkcheck_retries = 2


def mathml(self: HTML5Translator, node: nodes.math) -> None:
    """Write an inline formula as MathML, which browsers show by themselves: no script, no network."""
    self.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def mathml_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def resolve_folders(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to folders of the repository lead to the model card in them; of other folders the name stays."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(pending_xref)):
        if link["reftype"] != "myst" or link["refdomain"] is not None:
            continue
        target = (folder / link["reftarget"]).resolve()
        if target.is_dir():
            card = app.env.path2doc(target / "README.md")
            if card in app.env.found_docs:
                link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", card, None
            else:
                link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is written above."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml_block, None))
    app.connect("doctree-read", resolve_folders)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
