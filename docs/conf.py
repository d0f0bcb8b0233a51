"""Configuration of Sphinx. Nothing here needs the network; see LAMOST_LSF_DOCS_INTERSPHINX."""

import inspect
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

import lamost_lsf

if find_spec("torch") is None:
    # The pages about training need its names, not its gigabytes. For this import only: scipy and others ask whether
    # torch was imported, and would take the stand-in for it.
    with mock(["torch", "safetensors.torch"]):
        import lamost_lsf.sed
        import lamost_lsf.training

        for name in lamost_lsf.sed.__all__:
            getattr(lamost_lsf.sed, name)

HERE = Path(__file__).resolve().parent

project = "lamost_lsf"
author = "The lamost_lsf developers"
copyright = author
release = version = lamost_lsf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_automodapi.automodapi",
    "sphinx_gallery.gen_gallery",
    "pytest_doctestplus.sphinx.doctestplus",
]
exclude_patterns = ["_build", "changes", "examples", "**.ipynb_checkpoints"]
default_role = "py:obj"
highlight_language = "python"
suppress_warnings = ["config.cache"]  # the functions of sphinx-gallery's configuration cannot be pickled

# -- API ------------------------------------------------------------------------------------------------------

automodapi_toctreedirnm = "api"
automodsumm_inherited_members = True
automodsumm_included_members = ["__call__"]
autodoc_typehints = "none"  # numpydoc's sections say it better, with shapes and units
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Links into other packages' documentation need their inventories from the network: only on request.
intersphinx_mapping = {}
if os.environ.get("LAMOST_LSF_DOCS_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "astropy": ("https://docs.astropy.org/en/stable", None),
        "specutils": ("https://specutils.readthedocs.io/en/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

# -- gallery --------------------------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    # an example that trains is shown without its figures where torch is not installed
    "filename_pattern": r"/plot_" if find_spec("torch") else r"/plot_(?!trained_model|sed)",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "capture_repr": (),  # what is printed is on purpose
    "reset_modules": ("matplotlib",),
}
# simulated data only, wherever the pages are built
os.environ.pop("LAMOST_LSF_DATA", None)
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")

# -- HTML -----------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"lamost_lsf {release}"
html_static_path = ["_static"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
linkcheck_timeout = 30
linkcheck_retries = 2

# -- public names ---------------------------------------------------------------------------------------------
# Everything is documented once, in the module that defines it. The names that scripts use, ``lamost_lsf.convolve``, are
# the same objects: a table of them is written here, and references to them are led home.


def _home(name):
    """Full name under which a public object is documented."""
    return f"lamost_lsf.{lamost_lsf._PUBLIC[name]}.{name}"


def _summary(name):
    return (inspect.getdoc(getattr(lamost_lsf, name)) or "").split("\n\n")[0].replace("\n", " ")


def write_public_names():
    lines = [".. list-table::", "   :widths: 30 70", ""]
    for name in sorted(lamost_lsf._PUBLIC, key=str.lower):
        lines += [f"   * - :py:obj:`lamost_lsf.{name} <{_home(name)}>`", f"     - {_summary(name)}"]
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    target, text = folder / "public_names.inc", "\n".join(lines) + "\n"
    # unchanged files keep their time, so that a second build has nothing to do
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


def lead_home(app, env, node, contnode):
    """Resolve ``lamost_lsf.Name`` and bare public names to where they are documented."""
    if node.get("refdomain") != "py":
        return None
    name, _, member = node["reftarget"].removeprefix("lamost_lsf.").partition(".")
    if name not in lamost_lsf._PUBLIC:
        return None
    target = _home(name) + (f".{member}" if member else "")
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def missing_from_reference():
    """Modules with public names that reference.rst lacks: they would be documented nowhere."""
    text = (HERE / "reference.rst").read_text(encoding="utf-8")
    listed = {line.split("::")[1].strip() for line in text.splitlines() if line.startswith(".. automodapi::")}
    return sorted({f"lamost_lsf.{module}" for module in lamost_lsf._PUBLIC.values()} - listed)


def setup(app):
    write_public_names()
    app.connect("missing-reference", lead_home)
    if missing := missing_from_reference():
        logging.getLogger(__name__).warning("reference.rst lacks %s", ", ".join(missing))
