"""In a notebook: what the import brings, diagrams of estimators, bars of text."""

import warnings

import nbformat
import pytest
from nbclient import NotebookClient

# ipywidgets may be missing: then tqdm's bar for notebooks warns, or fails
NO_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"
BROUGHT = """
import skattrib.language, skattrib.plotting
found = sorted({"matplotlib", "tqdm.auto", "transformers"} & sys.modules.keys())
found, "skattrib.plotting" in sys.modules
"""
SHOW_ALL = """
from sklearn.base import BaseEstimator
found = [vars(skattrib).get(name) for name in skattrib.__all__]
found = [kind for kind in found if isinstance(kind, type)]
estimators = [kind() for kind in found if issubclass(kind, BaseEstimator)]
for estimator in estimators:
    display(estimator)
"""
FITTED = """
from sklearn.datasets import load_iris
X, y = load_iris(return_X_y=True)
network = skattrib.TorchClassifier(max_epochs=2, random_state=0)
attributor = skattrib.DualInfluence(network, verbose=1, random_state=0)
attributor.fit(X[::5], y[::5])
"""


@pytest.fixture(scope="module")
def cells():
    """Outputs of the cells of a notebook that was run."""
    imports = [NO_WIDGETS, "import skattrib", BROUGHT]
    sources = [*imports, SHOW_ALL, FITTED, "len(estimators)"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own packages
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_import_prints_nothing(cells):
    assert cells[1] == []


def test_packages_of_extras_and_the_progress_bar_are_not_imported(cells):
    assert cells[2][0].data["text/plain"] == "([], True)"


def test_every_estimator_is_drawn(cells):
    shown = [output for output in cells[3] if output.output_type == "display_data"]
    n_estimators = int(cells[5][0].data["text/plain"])
    assert len(shown) == len(cells[3]) == n_estimators > 10
    for output in shown:
        assert "sk-container" in output.data["text/html"]
        assert "text/plain" in output.data


def test_progress_is_a_bar_of_text(cells):
    *printed, result = cells[4]
    assert "sk-container" in result.data["text/html"]
    text = "".join(output.text for output in printed)
    assert "newton steps" in text
    assert "Warning" not in text
