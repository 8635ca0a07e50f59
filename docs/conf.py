"""Configuration of the documentation: ``python -m sphinx -W docs docs/_build``."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small images: a second thread waits more than it works
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

project = "labelbandit"
author = "the labelbandit developers"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_design",
    "command_help",
]
exclude_patterns = ["_build", "_ext"]
default_role = "code"
html_theme = "furo"
html_title = "labelbandit"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("DOCS_EXECUTE", "force")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_in_temp = True
suppress_warnings = [
    "mystnb.unknown_mime_type",
    "myst-nb.lexer",
    "myst.xref_missing",
    "misc.highlighting_failure",
]
