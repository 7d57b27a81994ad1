"""The leaderboard as JSON, a table for the manual and a figure."""

import json
import math

from benchmarks._table import IMAGES, MEASURED, Table, ranged
from benchmarks._table import write as write_table

COLUMNS = {
    "method": "method",
    "lds": "LDS, same seed",
    "ensemble": "LDS, 3 seeds",
    "loo": "leave-one-out",
    "removal": "removal area",
    "emptied": "of one class",
    "mislabel": "mislabel AUC",
    "cost": "cost",
    "memory": "MB",
}
BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"
STYLES = {
    "skattrib": {"marker": "o", "color": BLUE, "label": "skattrib, defaults"},
    "peer": {"marker": "^", "color": RED, "label": "peers, tuned on truth"},
    "default": {
        "marker": "^",
        "facecolors": "none",
        "edgecolors": RED,
        "label": "peers, defaults",
    },
    "baseline": {"marker": "x", "color": GREY, "label": "baselines"},
}


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.2f}"
    return ranged(*value)


def cells(row):
    """Return the strings of a row, one for each column."""
    name = row["method"]
    if row["setting"]:
        name += " (" + ", ".join(f"{k}={v}" for k, v in row["setting"].items()) + ")"
    if row.get("error"):
        return [name, row["error"], *[""] * (len(COLUMNS) - 2)]
    measured = [_cell(row[k]) for k in list(COLUMNS)[1:-2]]
    return [name, *measured, f"{row['cost']:.3g}", f"{row['memory']:.0f}"]


def front(points):
    """Return the (cost, score) that nothing cheaper reaches, by cost."""
    best, found = -math.inf, []
    for cost, score in sorted(points):
        if score > best:
            found.append((cost, score))
            best = score
    return found


def figure(board, path):
    """Draw the fidelity over the cost: every method, and the two fronts."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "skattrib"
    drawn = Figure(figsize=(8, 5), layout="constrained")
    ax = drawn.subplots()
    points = {kind: [] for kind in STYLES}
    for row in board["rows"]:
        if not row.get("error"):
            points[row["kind"]].append((row["cost"], max(row["lds"][0], -0.05)))
    for kind, style in STYLES.items():
        if points[kind]:
            ax.scatter(*zip(*points[kind], strict=True), s=45, zorder=3, **style)

    most = max(cost for kind in points.values() for cost, _ in kind)
    for kinds, color in ((["skattrib"], BLUE), (["peer", "baseline"], RED)):
        found = front([p for kind in kinds for p in points[kind]])
        if found:
            costs, scores = zip(*found, strict=True)
            line = [*costs, most], [*scores, scores[-1]]
            ax.step(*line, where="post", color=color, alpha=0.5)

    ceiling = board["ceiling"]["lds"][0]
    ax.axhline(ceiling, color="#999999", linestyle=":")
    ax.annotate(
        "another training seed",
        (0.02, ceiling),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color=GREY,
    )
    ax.set_xscale("log")
    ax.set_xlabel("CPU time, in passes of per-row gradients over the training set")
    ax.set_ylabel("LDS against 200 retrained subsets, same seed")
    ax.set_title(f"{board['dataset']}: {board['n_rows']} rows")
    ax.legend(loc="lower right", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, metadata={"Date": None})
    if path.suffix == ".svg":
        # matplotlib ends lines with blanks
        lines = [line.rstrip() for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")


def _path(name):
    return MEASURED / f"leaderboard_{name}.json"


def read(name):
    """Return the board that was kept."""
    return json.loads(_path(name).read_text())


def keep(board):
    _path(board["dataset"]).write_text(json.dumps(board, indent=1) + "\n")


def show(board, write=True):
    """Print the table; write it and the figure into the manual."""
    table = Table("", list(COLUMNS.values()))
    for row in board["rows"]:
        table.add(*cells(row))
    if write:
        name = f"leaderboard_{board['dataset']}"
        write_table(name, table)
        figure(board, IMAGES / f"{name}.svg")
