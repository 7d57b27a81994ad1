"""The manual and the package name the same public things."""

import re
import tomllib
from pathlib import Path

import skattrib
import skattrib.evaluation
import skattrib.extension
import skattrib.language
import skattrib.optimizers
import skattrib.plotting
import skattrib.recording

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "doc" / "api.rst"


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
            skattrib.extension,
            skattrib.language,
            skattrib.optimizers,
            skattrib.plotting,
        )
        for name in module.__all__
        if not name.startswith("_") and f"skattrib.{name}" != "skattrib.evaluation"
    }
    more = set(skattrib.recording.__all__) - set(skattrib.__all__)
    expected |= {f"skattrib.recording.{name}" for name in more}
    # what two modules export is listed once, where it is extended
    twice = set(skattrib.optimizers.__all__) & set(skattrib.extension.__all__)
    expected -= {f"skattrib.optimizers.{name}" for name in twice}
    assert len(names) == len(set(names))
    assert set(names) == expected


def metadata():
    """The project's table in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pinned(name):
    """Versions by package of a file of constraints."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def bounds(requirements):
    """Lower bounds by package of requirements that have one."""
    return dict(r.split(">=") for r in requirements if ">=" in r)


def test_the_bounds_are_the_oldest_versions_tested():
    project = metadata()
    required = project["optional-dependencies"] | project
    oldest = pinned("constraints-oldest.txt")
    for kind in ("dependencies", "index", "lightning", "plot", "skorch", "test"):
        found = bounds(required[kind])
        assert found

        for name, bound in found.items():
            # 2.0 is 2.0.0
            assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", oldest[name]), name


def test_the_installation_page_names_what_was_tested():
    page = (ROOT / "doc" / "install.rst").read_text(encoding="utf-8")
    rows = re.findall(r"\* - (\S+)\n +- ([\d.]+)\n +- ([\d.]+)\n", page)
    named = {name.lower(): (old, new) for name, old, new in rows}
    project = metadata()
    oldest, newest = pinned("constraints-oldest.txt"), pinned("constraints.txt")
    expected = {
        name: (oldest[name], newest[name]) for name in bounds(project["dependencies"])
    }
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    expected["python"] = (pythons[0], pythons[-1])
    assert named == expected
    assert project["requires-python"] == f">={pythons[0]}"


def test_the_benchmarks_named_exist():
    patterns = ("*.md", "doc/**/*.rst", "benchmarks/**/*.md", "examples/*.py")
    pages = [page for pattern in patterns for page in ROOT.glob(pattern)]
    named = {
        name
        for page in pages
        for name in re.findall(r"benchmarks(?:\.[a-z]\w*)+", page.read_text("utf-8"))
    }
    assert len(named) > 25
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_every_measured_table_is_in_the_manual():
    files = [*ROOT.glob("doc/*.rst"), *ROOT.glob("doc/measured/*.rst")]
    pages = "".join(path.read_text("utf-8") for path in files)
    shown = set(re.findall(r"include:: /?measured/(\w+)\.inc", pages))
    assert shown == {path.stem for path in ROOT.glob("doc/measured/*.inc")}
