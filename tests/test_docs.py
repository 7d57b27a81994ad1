"""The manual and the package name the same public things."""

from pathlib import Path

import skattrib
import skattrib.evaluation
import skattrib.language
import skattrib.plotting

API = Path(__file__).resolve().parents[1] / "doc" / "api.rst"


def listed_names():
    """Full names of the entries in the autosummary tables of the API page."""
    module, inside, names = None, False, []
    for line in API.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith(".. currentmodule::"):
            module = text.split("::")[1].strip()
        elif text.startswith(".. autosummary::"):
            inside = True
        elif text and not line.startswith(" "):
            inside = False
        elif inside and text and not text.startswith(":"):
            names.append(f"{module}.{text}")
    return names


def test_api_page_lists_the_public_names():
    names = listed_names()
    expected = {
        f"{module.__name__}.{name}"
        for module in (
            skattrib,
            skattrib.evaluation,
            skattrib.language,
            skattrib.plotting,
        )
        for name in module.__all__
        if not name.startswith("_") and f"skattrib.{name}" != "skattrib.evaluation"
    }
    assert len(names) == len(set(names))
    assert set(names) == expected
