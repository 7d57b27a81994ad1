"""Which tasks help? Read-outs and selections of surrogates against real retraining.

Twelve tasks of 20 digits each (clusters of look-alikes), two with random labels,
drawn anew each time with a new network (64-16-10, AdamW). Outcome: mean log-likelihood
of 250 clean digits. All subsets are really trained on. The surrogates learn from 200
subsets in which every task is with probability p; leave-one-out subsets are kept out.
A selection drops and adds tasks greedily by predicted outcome, and is judged by the
loss (minus the outcome) of the network really trained on it.

    python -m benchmarks.surrogates.tasks
"""

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans

from benchmarks._data import shuffled_digits
from benchmarks._table import Table, pm, write
from benchmarks.surrogates import _comparison as comparison
from benchmarks.surrogates._comparison import KERNEL, LINEAR, SURROGATES
from skattrib import TorchClassifier

# `TaskWeightSelector` searches so, but only by what an attributor predicts.
from skattrib._task_sets import greedy
from skattrib.evaluation import loo_score, retrain_outcomes

N_DRAWS, N_TASKS, N_ROWS, N_QUERIES = 12, 12, 20, 250
N_SUBSETS, INCLUSIONS = 200, (0.5, 0.75)


def draw(seed):
    """Return rows, labels, tasks, queries, their labels and the two noisy tasks."""
    X, y, rng = shuffled_digits(seed)
    # clusters of the first thousand rows; queries come from the rest
    tasks = KMeans(N_TASKS, n_init=3, random_state=seed).fit_predict(X[:1000])
    rows = np.concatenate([np.flatnonzero(tasks == t)[:N_ROWS] for t in range(N_TASKS)])
    noisy = rng.choice(N_TASKS, 2, replace=False)
    labels, tasks = y[rows].copy(), tasks[rows]
    wrong = np.isin(tasks, noisy)
    labels[wrong] = rng.randint(0, 10, wrong.sum())
    queries = slice(1000, 1000 + N_QUERIES)
    return X[rows], labels, tasks, X[queries], y[queries], noisy


def one_draw(seed):
    """Return {p: (Pearson, Spearman of queries, loss) by surrogate} and references."""
    X, y, tasks, Xq, yq, noisy = draw(seed)
    net = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=seed)

    def outcomes(weights):
        return retrain_outcomes(net, X, y, weights, Xq, yq, tasks=tasks)

    one_out = outcomes(comparison.leave_one_out(N_TASKS))
    effects = (one_out[-1] - one_out[:-1]).mean(axis=1)
    clean = np.isin(np.arange(N_TASKS), noisy, invert=True)
    losses = -outcomes(np.array([np.ones(N_TASKS), clean])).mean(axis=1)
    found = {"all": losses[0], "without the two": losses[1]}

    for p in INCLUSIONS:
        weights = comparison.draw_subsets(N_TASKS, N_SUBSETS, p, seed)
        known, scores, chosen = outcomes(weights), [], []
        for surrogate in SURROGATES.values():
            model = clone(surrogate).fit(weights, known)
            loo = comparison.loo_of(model)
            pearson = np.corrcoef(loo.mean(axis=0), effects)[0, 1]
            scores.append((pearson, loo_score(one_out[:-1], loo)))
            # the set of tasks with the largest mean outcome that is predicted
            best = greedy(lambda W, m=model: m.predict(W).mean(axis=1), N_TASKS, None)
            chosen.append(best)
        losses = -outcomes(np.array(chosen)).mean(axis=1)
        found[p] = np.column_stack([scores, losses])
    print(f"draw {seed} done", flush=True)
    return found


def interval(values):
    """Return the mean and its 95 % interval over draws, by the standard error."""
    return pm(values, times=1.96)


def main():
    draws = [one_draw(seed) for seed in range(N_DRAWS)]
    of_all, oracle = (
        np.array([d[name] for d in draws]) for name in ("all", "without the two")
    )
    table = Table(
        f"Twelve tasks of digits, {N_DRAWS} draws",
        "p | surrogate | LOO (Pearson of means) | LOO (Spearman of queries) | loss "
        "of selection | over that without the noisy two, %",
    )

    for p in INCLUSIONS:
        # (surrogates, draws, 3)
        found = np.stack([d[p] for d in draws], axis=1)
        found = dict(zip(SURROGATES, found, strict=True))
        for name, values in found.items():
            over = 100 * (values[:, 2] / oracle - 1)
            table.add(p, name, *map(interval, (*values.T, over)))
        kernel, linear = found[KERNEL], found[LINEAR]
        differences = [interval(column) for column in (kernel - linear).T]
        table.add(p, "kernel minus linear, both tuned", *differences, "")
        gain = interval(100 * (1 - kernel[:, 2] / linear[:, 2]))
        print(f"p={p}: loss of kernel's selection below the linear's, %", gain)

    losses = f"{interval(of_all)}, without the noisy two {interval(oracle)}"
    write("tasks", table, f"Trained on all tasks the loss is {losses}.")


if __name__ == "__main__":
    main()
