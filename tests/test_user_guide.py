"""The code of the user guide runs and prints what the guide shows."""

import doctest
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

DOC = Path(__file__).resolve().parents[1] / "doc"
PAGES = sorted((DOC / "guide").glob("*.rst"))
# a net of skorch is initialised by torch's generator
TOUCHES = {"train": pytest.mark.touches_global_rng}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Checker(doctest.OutputChecker):
    """Lets a number with decimals differ by 0.01, or 15 % of itself."""

    number = re.compile(r"-?\d+\.\d+")

    def check_output(self, want, got, optionflags):
        wanted, found = map(self.number.findall, (want, got))
        if len(wanted) == len(found):
            near = [
                float(f) == pytest.approx(float(w), rel=0.15, abs=0.01)
                for w, f in zip(wanted, found, strict=True)
            ]
            if all(near):
                numbers = iter(wanted)
                got = self.number.sub(lambda _: next(numbers), got)
        return super().check_output(want, got, optionflags)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=TOUCHES.get(p.stem, ()), id=p.stem) for p in PAGES],
)
def test_code_of_the_page(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    text = page.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, page.stem, str(page), 0)
    report = []
    runner = doctest.DocTestRunner(checker=Checker(), optionflags=FLAGS)
    runner.run(test, out=report.append)
    plt.close("all")
    assert test.examples
    assert not runner.failures, "".join(report)


def test_every_page_is_listed():
    listed = (DOC / "user_guide.rst").read_text(encoding="utf-8").split()
    assert [page for page in PAGES if f"guide/{page.stem}" not in listed] == []
