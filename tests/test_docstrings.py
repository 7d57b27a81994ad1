"""Docstrings of the public names: valid, with an example, methods included."""

import inspect
import tomllib
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


def errors(name):
    return [error for error in validate(name)["errors"] if error[0] in CHECKS]


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
