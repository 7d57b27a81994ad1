"""The README's promises: its Python runs, its shell commands have their form."""

import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language):
    """Yield the line before and the text of each fenced block of a language."""
    text = README.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, match.start(1)), match[1]


@pytest.mark.touches_global_rng  # LogisticRegression without a random_state
def test_python_blocks_run(monkeypatch, tmp_path):
    sources = list(blocks("python"))
    assert sources
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    try:
        for line, source in sources:  # the empty lines make line numbers the README's
            exec(compile("\n" * line + source, str(README), "exec"), namespace)
    finally:
        plt.close("all")


def test_first_shell_blocks_are_one_command_each():
    sources = [source.strip() for _, source in blocks("bash")]
    assert len(sources) >= 2
    assert not any("\n" in source for source in sources[:2])
    assert "make test" in sources[1]  # .ci/run runs the second
