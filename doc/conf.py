"""Configuration of the manual: make docs."""

import skattrib

project = "skattrib"
author = "skattrib developers"
copyright = "2026, skattrib developers"
version = release = skattrib.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

autosummary_generate = True
# The class template lists the members, see _templates/autosummary/class.rst.
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    # shown, but not run: they need the extra "language"
    "ignore_pattern": r"^(?!.*(plot_|language_)).*\.py$",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("skattrib",),
    "reference_url": {"skattrib": None},
    "backreferences_dir": "generated/backreferences",
    "abort_on_example_error": True,
    "parallel": 2,  # one thread each, as `make docs` has it
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skattrib {version}"
html_show_sourcelink = False
html_sidebars = {"install": [], "changes": [], "contributing": []}
