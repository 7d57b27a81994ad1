"""The choice of a space to solve in, and of how units are left out: by counted work."""

import pytest

from skattrib.engine._gradients import GradientSize
from skattrib.engine._plan import ProblemSize, Units, plan_solver

PLENTY = 2.0**30


def problem(n_rows, n_outputs, n_params, itemsize=8, count=0, **options):
    units = options.pop("units", Units(count))
    return ProblemSize(n_rows, n_outputs, n_params, itemsize, units=units, **options)


@pytest.mark.parametrize(
    ("n_rows", "n_params", "memory_bytes", "expected"),
    [
        (1000, 50, PLENTY, "primal"),
        (50, 10_000, PLENTY, "dual"),
        (1000, 20_000, PLENTY, "dual"),
        # the dual would be cheaper, but 3000² outputs do not fit
        (1000, 5000, 5 * 8 * 3000**2 - 1, "cg"),
        (10_000, 200, 2.0**27, "primal"),
        (50_000, 10**7, 2.0**27, "cg"),
    ],
)
def test_cheapest_that_fits(n_rows, n_params, memory_bytes, expected):
    plan = plan_solver(problem(n_rows, 3, n_params), memory_bytes)
    assert plan.solver == expected
    assert (f"n·C = {3 * n_rows}") in plan.reason


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
def test_what_is_asked_for(solver):
    assert plan_solver(problem(10, 3, 100), PLENTY, solver).solver == solver


@pytest.mark.parametrize(
    ("solver", "size"), [("primal", "P = 1000000"), ("dual", r"n·C = 150000")]
)
def test_what_does_not_fit_is_refused(solver, size):
    large = problem(50_000, 3, 10**6)
    with pytest.raises(ValueError, match=rf"solver='{solver}'.*{size}.*'cg'"):
        plan_solver(large, PLENTY, solver)
    assert plan_solver(large, PLENTY, "cg").solver == "cg"


def test_gradients_and_steps_count():
    size, n_params = 3 * 1000, 10_000
    cap = 8.0 * (5 * size**2) + 1000
    plan = plan_solver(problem(1000, 3, n_params), cap)
    assert plan.solver == "dual"
    assert "0 MiB of gradients" in plan.reason
    two_mib, eight_mib = (GradientSize(2.0**k, dense=False) for k in (21, 23))
    plan = plan_solver(problem(1000, 3, n_params, gradients=two_mib), cap)
    assert plan.solver == "cg"
    assert "2 MiB of gradients" in plan.reason
    assert plan_solver(problem(1000, 3, n_params, count=1), cap).solver == "cg"
    with pytest.raises(ValueError, match=r"'dual' needs .*2 MiB of gradients.*'cg'"):
        plan_solver(problem(1000, 3, n_params, gradients=two_mib), cap, "dual")
    # parameters are few, but their gradients are there before they are joined
    assert plan_solver(problem(1000, 3, 50), 2.0**23).solver == "primal"
    with pytest.raises(ValueError, match=r"'primal' needs .*8 MiB of gradients"):
        plan_solver(problem(1000, 3, 50, gradients=eight_mib), 2.0**23, "primal")


@pytest.mark.parametrize("solver", ["auto", "cg"])
@pytest.mark.parametrize(
    "needs", [{"gradients": GradientSize(2.0**28, False)}, {"count": 20_000}], ids=str
)
def test_what_fits_nowhere_is_refused(solver, needs):
    with pytest.raises(ValueError, match=r"'cg' needs .*working_memory"):
        plan_solver(problem(20_000, 3, 10**5, **needs), 2.0**27, solver)


def test_a_refusal_names_what_fits_and_what_it_costs():
    # steps of all units are not kept at first order, nor by the rows of dense layers
    many = problem(20_000, 3, 10**5, count=20_000)
    with pytest.raises(ValueError, match=r"'cg' with removal='influence' \(\de\+1\d"):
        plan_solver(many, 2.0**27, "cg")
    nothing = problem(20_000, 3, 10**5, gradients=GradientSize(2.0**28, False))
    with pytest.raises(ValueError, match=r"AdamWInfluence\(inclusion=1\)"):
        plan_solver(nothing, 2.0**27)


# ------------------------------------------------------------------- removal="auto"
@pytest.mark.parametrize(
    ("n_rows", "n_outputs", "n_params", "expected"),
    [
        (300, 3, 200, ("primal", "newton")),
        (50, 3, 10_000, ("dual", "newton")),
        (5000, 2, 6000, ("primal", "newton")),
        (10_000, 2, 6000, ("primal", "newton")),
        (50_000, 2, 6000, ("primal", "influence")),
        (5000, 10, 50_000, ("cg", "influence")),
    ],
)
def test_removal_is_chosen_by_counted_work(n_rows, n_outputs, n_params, expected):
    dense = GradientSize(2.0**20, dense=True)
    size = problem(n_rows, n_outputs, n_params, 4, n_rows, gradients=dense)
    plan = plan_solver(size, PLENTY, removal="auto")
    assert (plan.solver, plan.removal) == expected
    assert ("affordable" in plan.removal_reason) == (expected[1] == "newton")
    assert plan.n_bytes < PLENTY


def test_what_fits_at_first_order_only_is_not_refused():
    size = problem(20_000, 3, 10**5, count=20_000)
    with pytest.raises(ValueError, match="'cg' needs"):
        plan_solver(size, 2.0**27, removal="newton")
    plan = plan_solver(size, 2.0**27, removal="auto")
    assert (plan.solver, plan.removal) == ("cg", "influence")
    assert plan.removal_reason == "Newton steps do not fit the memory"


def test_newton_steps_are_taken_where_training_takes_longer():
    dense = GradientSize(2.0**20, dense=True)
    size = dict(count=50_000, gradients=dense)
    short = problem(50_000, 2, 6000, 4, training=1e11, **size)
    long = problem(50_000, 2, 6000, 4, training=1e13, **size)
    assert plan_solver(short, PLENTY, removal="auto").removal == "influence"
    why = plan_solver(short, PLENTY, removal="auto").removal_reason
    assert "trainings" in why
    assert plan_solver(long, PLENTY, removal="auto").removal == "newton"


@pytest.mark.parametrize(
    ("units", "removal", "solver", "expected"),
    [
        (Units(1000), "newton", "primal", True),
        (Units(1000), "influence", "cg", True),
        (Units(1000), "newton", "dual", False),
        (Units(1000), "newton", "cg", False),
        (Units(20), "newton", "primal", False),
        (Units(500, largest=2), "newton", "primal", False),
        (Units(500, largest=2), "influence", "primal", True),
        (Units(1000, additive=False), "influence", "primal", False),
        (Units(1000, n_weights=900), "newton", "primal", False),
    ],
)
def test_queries_are_solved_for_where_units_are_many(units, removal, solver, expected):
    plan = plan_solver(problem(1000, 2, 300, units=units), PLENTY, solver, removal)
    assert plan.by_query is expected


# ------------------------------------------------------------------------ landmarks
def test_a_quarter_of_the_rows_are_landmarks_or_what_fits():
    plan = plan_solver(problem(1000, 3, 10**5), PLENTY, "nystroem")
    assert (plan.solver, plan.n_landmarks) == ("nystroem", 250)
    assert plan.reason == "as requested: an approximation, 250 of 1000 rows"
    few = [plan_solver(problem(n, 3, 10**5), PLENTY, "nystroem") for n in (40, 200)]
    assert [plan.n_landmarks for plan in few] == [40, 100]
    large = 10_000, 3, 10**6
    fewer = plan_solver(problem(*large), 2.0**28, "nystroem").n_landmarks
    assert 1 < fewer < 2500
    held = 8 * 2 * 30_000 * 3 * fewer  # the projected Jacobian, with a copy
    assert 2.0**26 < held < 2.0**28
    steps = plan_solver(problem(*large, count=10_000), 2.0**28, "nystroem")
    assert 1 <= steps.n_landmarks < fewer
    with pytest.raises(ValueError, match=r"'nystroem' needs .*working_memory"):
        plan_solver(problem(10**6, 30, 10**6), 2.0**28, "nystroem")


def test_preconditioned_where_it_pays():
    def landmarks(count, cap):
        size = problem(1000, 10, 6000, 4, count)
        return plan_solver(size, cap, "cg").n_landmarks

    # P / C directions cost about as much to apply as the kernel
    assert landmarks(1000, 2.0**28) == 60
    assert landmarks(5, 2.0**28) == 0
    assert 0 < landmarks(100, 2.0**26) < 60
    primal = plan_solver(problem(1000, 3, 50, count=1000), PLENTY)
    assert (primal.solver, primal.n_landmarks) == ("primal", 0)


def test_little_memory_is_never_refused():
    small = problem(1000, 3, 10**5, gradients=GradientSize(2.0**25, False))
    assert plan_solver(small, 1.0).solver == "cg"
