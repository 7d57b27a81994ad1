"""Attributions by other packages, of the same network, and what came in their way."""

import tempfile
from functools import cache
from pathlib import Path

from benchmarks._orders import list_peers, run_peer, write_order
from skattrib.evaluation import lds_score

#: half precision and the 2,048 dimensions of its default take minutes on a CPU
SMALLER = {"use_half_precision": False, "proj_dim": 512}
RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4)
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
KERNEL, TRAK, MORE = "label kernel", "TRAK, 16 models", "TRAK, 50 models"


def _damped(name):
    """Return settings of margins, with the damping as it is and others."""
    first = {"margin": True}
    return [first, *[first | {name: damping} for damping in DAMPINGS]]


#: column: script, method, settings, of which the first is the default; None: its grid
PEERS = {
    KERNEL: ("run_baselines", "label kernel", None),
    TRAK: (
        "run_traker",
        "TRAK",
        [
            {"n_models": 16, **SMALLER, **one}
            for one in [{}, *[{"lambda_reg": ridge} for ridge in RIDGES]]
        ],
    ),
    MORE: ("run_traker", "TRAK", None),
    "kronfluence EK-FAC": ("run_kronfluence", "EK-FAC", _damped("damping_factor")),
    "dattri EK-FAC": ("run_dattri", "EK-FAC", _damped("damping")),
    "dattri TracIn": ("run_dattri", "TracIn", [{"margin": True}]),
}
TIMEOUT = 240
#: characters of an error that are shown
_SHOWN = 70


class Peers:
    """What packages say of a case.

    Attributes
    ----------
    cells : dict
        By column: LDS by default and at the best setting, or an error.
    best : dict
        Attributions (q, n) of the best setting, by column.
    """

    def __init__(self, case, halves, outcomes):
        self.cells, self.best, self._settings = {}, {}, {}
        self._halves, self._outcomes = halves, outcomes
        missing = _missing()
        numbers = case.setting.models
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "order.npz"
            states = case.states(max(numbers))
            write_order(path, case.fitted, *case.rows, *case.queries, models=states)
            for column, (script, method, settings) in PEERS.items():
                if script in missing:
                    self.cells[column] = missing[script]
                elif column == MORE:
                    self._more_models(path, script, method, 50 in numbers)
                else:
                    self._ask(column, path, script, method, settings)

    def _ask(self, column, path, script, method, settings):
        try:
            found = run_peer(script, method, path, settings, timeout=TIMEOUT)
        except (RuntimeError, TimeoutError) as error:
            self.cells[column] = _short(str(error))
            return
        scored = [
            None if error else lds_score(self._outcomes, self._halves @ scores.T)
            for scores, error in zip(found["scores"], found["errors"], strict=True)
        ]
        known = [i for i, score in enumerate(scored) if score is not None]
        if not known:
            self.cells[column] = _short(found["errors"][0])
            return
        best = max(known, key=lambda i: scored[i])
        self.best[column] = found["scores"][best].astype(float)
        self._settings[column] = found["settings"][best]
        shown = [scored[0], scored[best]] if len(scored) > 1 else scored
        self.cells[column] = " → ".join(
            "fails" if one is None else f"{one:.3f}" for one in shown
        )

    def _more_models(self, path, script, method, wanted):
        """Ask for more models with the setting that was best for fewer."""
        self.cells[MORE] = ""
        if wanted and TRAK in self.best:
            setting = self._settings[TRAK] | {"n_models": 50}
            self._ask(MORE, path, script, method, [setting])


def _short(error):
    return error if len(error) <= _SHOWN else f"{error[:_SHOWN]} …"


@cache
def _missing():
    """Return why a script cannot run, by script."""
    return list_peers()[1]
