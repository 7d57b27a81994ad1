"""The tables and figures of the manual.

Tables are printed as they grow, written to doc/measured, and read from there again.
"""

import csv
from contextlib import contextmanager
from pathlib import Path

import numpy as np

DOC = Path(__file__).resolve().parents[1] / "doc"
MEASURED, IMAGES = DOC / "measured", DOC / "images"


_DIRECTIVE, _HEADER = ".. csv-table::", ":header:"


def _row(cells):
    """Return a line of CSV."""
    quoted = (cell.replace('"', '""') for cell in cells)
    return ", ".join(f'"{cell}"' for cell in quoted)


class Table:
    """A csv-table.

    Parameters
    ----------
    caption : str
    header : list of str, or str with the titles between bars

    Attributes
    ----------
    rows : list of list of str
    """

    def __init__(self, caption, header):
        self.caption, self.rows = caption, []
        self.header = header.split(" | ") if isinstance(header, str) else [*header]

    def add(self, *cells, note="", quiet=False):
        """Add a row and print it, with a note that is not in the table.

        What is no text is written as Python writes it.
        """
        self.rows.append([str(cell) for cell in cells])
        if not quiet:
            print(_row(self.rows[-1]), note, flush=True)

    def put(self, *cells, n_keys=1):
        """Add a row and print it, in place of one whose first cells are the same."""
        self.add(*cells)
        new = self.rows.pop()
        for at, row in enumerate(self.rows):
            if row[:n_keys] == new[:n_keys]:
                self.rows[at] = new
                return
        self.rows.append(new)

    def __str__(self):
        lines = [f"{_DIRECTIVE} {self.caption}".rstrip()]
        lines += [f"   {_HEADER} {_row(self.header)}", ""]
        return "\n".join([*lines, *[f"   {_row(row)}" for row in self.rows]]) + "\n"


def write(name, *parts):
    """Write tables, and what is said below them, to one file of the manual."""
    text = "\n".join(str(part).rstrip("\n") + "\n" for part in parts)
    MEASURED.joinpath(f"{name}.inc").write_text(text)


def read(name):
    """Return the tables of a file of the manual."""
    tables, inside = [], False
    for line in MEASURED.joinpath(f"{name}.inc").read_text().splitlines():
        text = line.strip()
        if line.startswith(_DIRECTIVE):
            tables.append(Table(line.removeprefix(_DIRECTIVE).strip(), []))
            inside = True
        elif text and not line.startswith(" "):
            inside = False
        elif text and inside:
            cells = text.removeprefix(_HEADER).strip()
            (row,) = csv.reader([cells], skipinitialspace=True)
            if text.startswith(_HEADER):
                tables[-1].header = row
            else:
                tables[-1].rows.append(row)
    return tables


def reopen(name, caption, header, machine=None):
    """Return the table of a file, with its rows if it has the same columns.

    One with seconds names the ``machine`` in its caption; SystemExit if there are rows
    of another.
    """
    table = Table(f"{caption}, {machine}" if machine else caption, header)
    if MEASURED.joinpath(f"{name}.inc").exists():
        (last,) = read(name)
        if last.header == table.header:
            if machine and last.caption != table.caption:
                raise SystemExit(
                    f"doc/measured/{name}.inc has rows of “{last.caption}”, and this "
                    f"is “{table.caption}”: seconds are not mixed. Go on there, or "
                    "move the file away, and all rows are measured here."
                )
            table.rows = last.rows
    return table


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
