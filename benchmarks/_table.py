"""The tables and figures of the manual.

Tables are printed as they grow, and written to doc/measured.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

DOC = Path(__file__).resolve().parents[1] / "doc"
MEASURED, IMAGES = DOC / "measured", DOC / "images"


def _row(cells):
    """Return a line of CSV; what is no text is written as Python writes it."""
    quoted = (str(cell).replace('"', '""') for cell in cells)
    return "   " + ", ".join(f'"{cell}"' for cell in quoted)


class Table:
    """A csv-table.

    Parameters
    ----------
    caption : str
    header : list of str, or str with the titles between bars
    """

    def __init__(self, caption, header):
        header = header.split(" | ") if isinstance(header, str) else header
        titles = _row(header).strip()
        self.lines = [f".. csv-table:: {caption}".rstrip(), f"   :header: {titles}", ""]

    def add(self, *cells, note="", quiet=False):
        """Add a row and print it, with a note that is not in the table."""
        self.lines.append(_row(cells))
        if not quiet:
            print(self.lines[-1].strip(), note, flush=True)

    def __str__(self):
        return "\n".join(self.lines) + "\n"


def write(name, *parts):
    """Write tables, and what is said below them, to one file of the manual."""
    text = "\n".join(str(part).rstrip("\n") + "\n" for part in parts)
    MEASURED.joinpath(f"{name}.inc").write_text(text)


@contextmanager
def axes(name, n_columns, size, **options):
    """Yield axes side by side; save their figure when they are drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(1, n_columns, **options)
    figure.savefig(IMAGES / f"{name}.png", dpi=110)


def pm(values, digits=3, times=1):
    """Return mean ± standard error, or so many of them, over the first axis."""
    values = np.asarray(values)
    error = times * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def each(values):
    """Return the mean, and in brackets the values."""
    return f"{np.mean(values):.3f} ({' '.join(f'{value:.3f}' for value in values)})"


def ranged(point, low, high, digits=3):
    """Return a number with its interval."""
    return f"{point:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
