"""The leaderboard as JSON, Markdown, a table for the manual and a figure."""

import json
import math

from benchmarks._table import IMAGES, MEASURED, Table

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
OURS = "skattrib"


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.2f}"
    point, low, high = value
    return f"{point:.3f} [{low:.3f}, {high:.3f}]"


def cells(row):
    """Return the strings of a row, one for each column."""
    name = row["method"]
    if row["setting"]:
        name += " (" + ", ".join(f"{k}={v}" for k, v in row["setting"].items()) + ")"
    if row.get("error"):
        return [name, row["error"], *[""] * (len(COLUMNS) - 2)]
    measured = [_cell(row[k]) for k in list(COLUMNS)[1:-2]]
    return [name, *measured, f"{row['cost']:.3g}", f"{row['memory']:.0f}"]


def markdown(board):
    """Return the board as a Markdown table with a line on the work above it."""
    lines = [board["work"], "", "| " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|" + "---|" * len(COLUMNS))
    lines += ["| " + " | ".join(cells(row)) + " |" for row in board["rows"]]
    return "\n".join(lines) + "\n"


def table(board):
    """Return the board as a csv-table."""
    found = Table("", list(COLUMNS.values()))
    for row in board["rows"]:
        found.add(*cells(row), quiet=True)
    return str(found)


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
    styles = {
        "skattrib": {"marker": "o", "color": "#0072B2", "label": "skattrib, defaults"},
        "peer": {"marker": "^", "color": "#D55E00", "label": "peers, tuned on truth"},
        "default": {
            "marker": "^",
            "facecolors": "none",
            "edgecolors": "#D55E00",
            "label": "peers, defaults",
        },
        "baseline": {"marker": "x", "color": "#666666", "label": "baselines"},
    }
    points = {kind: [] for kind in styles}

    for row in board["rows"]:
        if row.get("error"):
            continue
        kind = row["kind"]
        points[kind].append((row["cost"], max(row["lds"][0], -0.05)))

    for kind, style in styles.items():
        if points[kind]:
            ax.scatter(*zip(*points[kind], strict=True), s=45, zorder=3, **style)

    most = max(cost for kind in points.values() for cost, _ in kind)
    for kinds, color in ((["skattrib"], "#0072B2"), (["peer", "baseline"], "#D55E00")):
        found = front([p for kind in kinds for p in points[kind]])
        if found:
            costs, scores = zip(*found, strict=True)
            ax.step(
                [*costs, most],
                [*scores, scores[-1]],
                where="post",
                color=color,
                alpha=0.5,
            )

    ceiling = board["ceiling"]["lds"][0]
    ax.axhline(ceiling, color="#999999", linestyle=":")
    ax.annotate(
        "another training seed",
        (0.02, ceiling),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color="#666666",
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


def write(board):
    """Write all four and print the Markdown."""
    name = f"leaderboard_{board['dataset']}"
    text = json.dumps(board, indent=1)
    MEASURED.joinpath(f"{name}.json").write_text(text + "\n")
    MEASURED.joinpath(f"{name}.md").write_text(markdown(board))
    MEASURED.joinpath(f"{name}.inc").write_text(table(board))
    figure(board, IMAGES / f"{name}.svg")
    print(markdown(board), flush=True)
