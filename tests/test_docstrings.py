"""Docstrings of the public names: valid, with an example, methods included."""

import ast
import inspect
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import get_validation_checks, validate

import skattrib
import skattrib.evaluation
import skattrib.extension
import skattrib.language
import skattrib.optimizers
import skattrib.plotting
import skattrib.recording
from skattrib._docstrings import fill_in

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHECKS = get_validation_checks(set(CONFIG["tool"]["numpydoc_validation"]["checks"]))

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (
        skattrib,
        skattrib.evaluation,
        skattrib.extension,
        skattrib.language,
        skattrib.optimizers,
        skattrib.plotting,
        skattrib.recording,
    )
    for name in module.__all__
    if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
}


def is_exception(obj):
    """Say whether it is raised: the errors that do it are examples enough."""
    return inspect.isclass(obj) and issubclass(obj, Exception)


def public_methods():
    """Names of the methods and properties that the package's own classes define."""
    for name, obj in PUBLIC.items():
        if not inspect.isclass(obj):
            continue
        for base in obj.__mro__:
            if not base.__module__.startswith("skattrib"):
                continue
            for attribute, value in vars(base).items():
                function = getattr(value, "__func__", value)
                if not attribute.startswith("_") and (
                    inspect.isfunction(function) or isinstance(value, property)
                ):
                    yield f"{name}.{attribute}"


METHODS = sorted(set(public_methods()))


# A place that `fill_in` was to fill.
PLACE = re.compile(r"%\(.*\)s")


def errors(name):
    """What numpydoc finds, and places that were left unfilled."""
    found = validate(name)
    unfilled = PLACE.findall(found["docstring"])
    return [error for error in found["errors"] if error[0] in CHECKS] + unfilled


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_valid(name):
    assert inspect.getdoc(PUBLIC[name]), "no docstring"
    assert not errors(name)


@pytest.mark.parametrize("name", [n for n in PUBLIC if not is_exception(PUBLIC[n])])
def test_docstring_has_an_example(name):
    assert any(">>>" in line for line in get_doc_object(PUBLIC[name])["Examples"])


@pytest.mark.parametrize("name", METHODS)
def test_method_docstring_is_valid(name):
    assert validate(name)["docstring"], "no docstring"
    assert not errors(name)


# -------------------------------------------------------- parts in common
# A parameter or the like, of three lines or more.
BLOCK = re.compile(r"^\S.*(?:\n +\S.*){2,}", re.MULTILINE)


def blocks_in(source):
    """Blocks of the docstrings, and of the parts of docstrings, in a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from BLOCK.findall(inspect.cleandoc(node.value))


def test_no_block_is_written_twice():
    places = defaultdict(list)
    for path in sorted((ROOT / "skattrib").rglob("*.py")):
        for block in blocks_in(path.read_text(encoding="utf-8")):
            places[block].append(path.name)
    assert len(places) > 100
    assert not {block: names for block, names in places.items() if len(names) > 1}


def test_blocks_are_found():
    source = '''
class A:
    """Summary.

    Parameters
    ----------
    short : int
        Of two lines.
    long : int, \
            default=3
        Of three lines,
        as it were.
    """

PARTS = {"long": """
    long : int
        Of three lines,
        as it were.
"""}'''
    assert [block.split(" :")[0] for block in blocks_in(source)] == ["long", "long"]


PARTS = {"first": "a : int\n    100 %.", "second": "    b : int\n\n        Two."}


def test_parts_are_indented_as_their_places():
    @fill_in(PARTS)
    def documented():
        """Say 5 % and %s, not %(first)s.

        %(first)s
            %(second)s
        """

    assert inspect.getdoc(documented).splitlines() == [
        "Say 5 % and %s, not %(first)s.",
        "",
        "a : int",
        "    100 %.",
        "    b : int",
        "",
        "        Two.",
    ]


def test_an_unknown_part_is_an_error():
    with pytest.raises(KeyError, match="third"):

        @fill_in(PARTS)
        class Documented:
            """Summary.

            %(third)s
            """


def test_docstrings_may_be_left_out():
    source = '@fill_in(PARTS)\ndef bare():\n    """%(first)s"""'
    names = {"fill_in": fill_in, "PARTS": PARTS}
    exec(compile(source, "bare", "exec", optimize=2), names)  # as python -OO does
    assert names["bare"].__doc__ is None


def test_an_unfilled_place_is_found(monkeypatch):
    monkeypatch.setattr(
        skattrib.TorchClassifier, "__doc__", "Classify.\n\n%(some part)s\n"
    )
    assert "%(some part)s" in errors("skattrib.TorchClassifier")
