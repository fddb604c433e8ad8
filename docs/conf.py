"""The configuration of the site; `make docs` builds it, and any warning is an error."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

HERE = Path(__file__).resolve().parent
os.environ["BNCORE_TORCH_COMPILED"] = "0"
sys.path[:0] = [str(HERE / "site"), str(HERE.parent)]

from sphinx.ext.autodoc.mock import _MockObject  # noqa: E402

import bncore  # noqa: E402
from bncore import adapter_compiler  # noqa: E402

# The adapters are imported for their docstrings, without the frameworks.  What stands for a
# framework may be a part of a type, as in `jax.Array | None`, has no version, and cannot be
# compiled against.
_MockObject.__or__ = _MockObject.__ror__ = lambda self, other: self
adapter_compiler.load = MagicMock()
find_version = importlib.metadata.version


def version_or_none(package: str) -> str:
    """Return the version of a package, or "0" if it is not installed."""
    try:
        return find_version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"


importlib.metadata.version = version_or_none

project = "bncore"
author = "the bncore developers"
copyright = author
version = release = bncore.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
    "bncore_site",  # docs/site: the C reference, mathematics, and links out of docs/
]
exclude_patterns = ["site", "gallery/*", "teaching/*", "examples", "data", "README.md"]
templates_path = ["site/templates"]
nitpicky = False
suppress_warnings = ["config.cache"]  # the gallery's settings have functions

# Markdown
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]  # GitHub shows such a block as a formula, too
myst_links_external_new_tab = False

# The API of Python. The frameworks need not be installed: only their names are read.
autodoc_mock_imports = ["torch", "jax", "onnx", "onnxruntime", "dask", "distributed", "xarray"]
autodoc_mock_imports += ["mpi4py", "ray", "zarr", "h5py", "flax", "equinox"]
autodoc_typehints = "none"  # the docstrings say more
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks: set[str] = set()

# Examples that run, with their pictures.
sphinx_gallery_conf = {
    "examples_dirs": ["gallery", "teaching"],
    "gallery_dirs": ["auto_gallery", "auto_teaching"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 3600,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "image_srcset": ["2x"],
    "thumbnail_size": (400, 280),
    "reset_modules": ("bncore_figures.reset",),
}

# How it looks.
html_theme = "pydata_sphinx_theme"
html_title = "bncore"
html_static_path = ["site/static"]
html_css_files = ["bncore.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "bncore"},
    "navigation_with_keys": False,
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navbar_align": "left",
    "icon_links": [],
}
html_sidebars = {"start": [], "index": [], "changes": []}
