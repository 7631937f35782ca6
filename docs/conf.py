# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The documentation's site: ``make docs`` builds it into ``build/docs``.

Sphinx reads from the root of the repository, so that README, pages and model cards are one tree, whose relative links
hold here as they do where the repository is read as plain Markdown.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

project = "anomalib_comet"
author = "The anomalib_comet authors"
copyright = "2026, The anomalib_comet authors"  # noqa: A001
release = version = installed_version("anomalib-comet")

# Of the libraries that autodoc imports; Sphinx's own are no Python warnings.
warnings.filterwarnings("ignore", category=FutureWarning)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "src/anomalib_comet/models/*/README.md"]
# Everything else is pruned: an environment alone holds tens of thousands of files.
exclude_patterns = [".*", "build", "dist", "datasets", "lightning_logs", "results", "runs", "tests", "**/__pycache__"]

# Headings are targets of links by the names that code hosting sites give them.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.header"]

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings name the types
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

# Names of other packages, whose documentation cannot be reached from everywhere, and of ours that are not public.
nitpick_ignore_regex = [
    ("py:.*", r"(anomalib|lightning|np|numpy|pd|sklearn|torch)\..*"),
    ("py:class", r"Anomalib(DataModule|Module)|ArrayLike|Evaluator|Path|P(re|ost)Processor|Transform|Visualizer"),
    ("py:class", r"(Test|Val)SplitMode"),
    ("py:exc", r"NonFiniteTrainingError"),  # a RuntimeError, whose page is docs/faults.md
    ("py:class", r"anomalib_comet\..*\.(CheckpointWriter|DataEntry|FrozenFeatures|InStep|LocalBackbone)"),
    ("py:data", r"[A-Z_]+"),
    ("py:meth", r"setup"),
    ("py:mod", r"direction"),
]

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


def documented_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Resolve a name by its last part: docstrings name the file of a function, pages the package that exports it."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    found = {
        (entry.docname, entry.node_id)
        for name, entry in env.domains.python_domain.objects.items()
        if name.rpartition(".")[2] == last and not entry.aliased
    }
    if len(found) != 1:
        return None
    ((docname, target),) = found
    return make_refnode(app.builder, node["refdoc"], docname, target, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is written above."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml_block, None))
    app.connect("doctree-read", resolve_folders)
    app.connect("missing-reference", documented_elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
