"""What the two neural network estimators share: building, training, predicting."""

import copy
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Hidden, Interval, StrOptions
from torch import nn

from skattrib._progress import tqdm
from skattrib._validation import (
    as_tensor,
    check_device,
    check_sample_weight,
    draw_seed,
    float_dtype,
    memory_cap,
)
from skattrib.engine._functional import (
    FunctionalModule,
)
from skattrib.engine._losses import ClassLoss, Loss, check_loss
from skattrib.engine._modules import (
    ACTIVATIONS,
    build_mlp,
    call_seeded,
    materialise,
    seeded,
    uncompiled_copy,
)
from skattrib.engine._optimizers import OPTIMIZERS, Optimizer, refuse_torch
from skattrib.engine._row_moments import moments_of_rows
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._stopping import Validation
from skattrib.engine._training import (
    stack_size,
    stacked_outputs,
    train,
    train_stack,
)
from skattrib.engine._trajectory import (
    SCHEDULES,
    Recipe,
    Trajectory,
    steps_to_keep,
)
from skattrib.models._answering import Answering
from skattrib.models._module_checks import (
    FEW,
    check_factory,
    check_module,
    few_outputs,
    warn_of_useless_biases,
)
from skattrib.models._rows import (
    as_it_takes,
    check_whole,
    in_dtype_of,
)
from skattrib.models._run_length import LengthOfRun
from skattrib.models._stopping import EarlyStopping

# A replay whose error is a larger share of the distance moved is another run.
_REPLAY_TOLERANCE = 1e-3


@dataclass
class TrainingProblem:
    """All that a run needs but the weights of its rows."""

    model: FunctionalModule
    loss: Loss
    recipe: Recipe
    X: torch.Tensor
    targets: torch.Tensor
    weighting: RowWeighting
    # steps that pass over the rows once
    epoch: int = 1
    # what decides when the run stops, if nothing has; and rows held out for it
    validation: Validation | None = None
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.intp))

    def weighted(self, weights):
        """Return the weights (k, n) in minibatch losses, where X is."""
        weights = as_tensor(weights, self.X)
        if len(self.held_out):  # which must not count for the weights of classes
            weights = weights.clone()
            weights[:, self.held_out] = 0
        return self.weighting(weights)


class TorchEstimator(Answering, LengthOfRun, BaseEstimator):
    """Training and prediction shared by classifier and regressor."""

    #: Whether it repeats one recorded run, whatever the seed.
    _one_run = False
    #: A regressor has none.
    class_weight = None

    _parameter_constraints: dict = {
        "module": [nn.Module, callable, None],
        "hidden_layer_sizes": ["array-like", Hidden(Integral)],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "loss": [StrOptions({"auto"}), nn.Module, callable, Loss],
        # a view: it sees what is registered later
        "optimizer": [StrOptions(OPTIMIZERS.keys()), Optimizer],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "betas": [tuple, list],
        "eps": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "nesterov": ["boolean"],
        "schedule": [StrOptions(set(SCHEDULES)), callable],
        "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean", EarlyStopping],
        "average": [StrOptions({"ema", "swa"}), None],
        "average_decay": [Interval(Real, 0, 1, closed="neither")],
        "record": [StrOptions({"recipe", "checkpoints", "states"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module=None,
        *,
        hidden_layer_sizes=(32,),
        activation="tanh",
        loss="auto",
        optimizer="adamw",
        learning_rate=1e-2,
        weight_decay=1e-2,
        betas=(0.9, 0.999),
        eps=1e-8,
        momentum=0,
        nesterov=False,
        schedule="constant",
        clip_norm=None,
        batch_size=None,
        max_epochs=100,
        early_stopping=False,
        average=None,
        average_decay=0.99,
        record="recipe",
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.momentum = momentum
        self.nesterov = nesterov
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.average = average
        self.average_decay = average_decay
        self.record = record
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _validate_params(self):
        # what repeats a recording has none of its own
        refuse_torch(getattr(self, "optimizer", None))
        super()._validate_params()

    # --------------------------------------------------------------- training
    def _fit(self, X, y, sample_weight):
        weights = check_sample_weight(
            sample_weight, X, dtype=float_dtype(X), ensure_non_negative=True
        )
        problem = self._problem(X, self._learn_target(y, X), check=True)
        vars(self).pop("validation_loss_curve_", None)  # of an earlier fit
        keep = steps_to_keep(self.record, problem.recipe.n_steps)
        weights = as_tensor(weights, problem.X)
        if len(problem.held_out) and not problem.weighted(weights[None]).any():
            raise ValueError(
                "sample_weight is 0 for all rows but those that early_stopping holds "
                "out: nothing is left to train on. Pass EarlyStopping(validation_data="
                "(X, y))."
            )
        watch = self._watch(problem)
        with tqdm(
            total=problem.recipe.n_steps,
            desc=type(self).__name__,
            disable=not self.verbose,
        ) as bar:
            result = train(
                problem.model,
                problem.loss,
                problem.recipe,
                problem.X,
                problem.targets,
                problem.weighted(weights[None]),
                watch=watch,
                keep=keep,
                stop_when_diverged=True,
                on_step=bar.update,
            )
        if watch is not None and watch.vectors is not None:
            problem = self._stopped(problem, result, watch)
        return self._finish(problem, result, weights)

    def _finish(self, problem, result, weights):
        """Store the end and the record of a run."""
        recipe = problem.recipe
        self._check_finite(result, recipe.n_steps)
        problem.model.load(result.params[0])
        scale = result.denominator
        counted = weights.clone()
        counted[problem.held_out] = 0
        self._keep(problem.model, recipe.n_steps)
        # the record is on the CPU: it must load where this device is missing
        self.trajectory_ = Trajectory(
            recipe=recipe,
            row_weights=weights.cpu(),
            denominator=None if scale is None else scale[0].cpu(),
            states={step: state.cpu() for step, state in result.states.items()},
            rows=moments_of_rows(problem.X, problem.targets, counted),
        )
        curve = np.array(result.loss_curve).reshape(-1, problem.epoch)
        self.loss_curve_ = curve.mean(axis=1)
        self.n_epochs_ = recipe.n_steps // problem.epoch
        self._held_out = problem.held_out
        return self

    def _problem(self, X, y, random_state=None, *, check=False):
        """Build module, recipe and tensors from validated arrays.

        ``check`` builds the module twice, to see that it comes out the same.
        """
        device = self._device()
        rng = check_random_state(
            self.random_state if random_state is None else random_state
        )
        init_seed, batch_seed = draw_seed(rng), draw_seed(rng)
        rows = as_tensor(X).to(device)
        model = FunctionalModule(self._build_module(rows, init_seed))
        if check:
            self._check_rebuilt(model.module, rows, init_seed)
        X = in_dtype_of(model.module, rows)
        if check:
            warn_of_useless_biases(model.module, X[:FEW], stacklevel=6)
        targets = self._targets(y, X)
        model.look(X)
        draws = model.behaviour.masks or model.behaviour.draws
        mask_seed = draw_seed(rng) if draws else 0
        stopping = self._stopping()
        held_out = np.zeros(0, dtype=np.intp)
        if stopping is not None:
            classes = isinstance(self.loss_function_, ClassLoss)
            held_out = stopping._rows_held_out(y, classes, batch_seed)
        batches = self._batches(len(X), held_out, batch_seed)
        n_steps = self.max_epochs if batches is None else len(batches)
        rates, epoch = self._learning_rates(n_steps), n_steps // self.max_epochs
        if stopping is not None and stopping.n_epochs is not None:
            n_steps = min(n_steps, stopping.n_epochs * epoch)
            rates = rates[:n_steps]
            batches = None if batches is None else batches[:n_steps]
        recipe = Recipe(
            optimizer=self._optimizer().bound(model.module),
            learning_rates=rates,
            initial=model.flatten().cpu(),
            batches=batches,
            clip_norm=self.clip_norm,
            statistics=model.statistics().cpu() if model.n_buffers else None,
            seed=mask_seed,
            average=self._shares_of_states(n_steps),
        )
        few = few_outputs(model.evaluated, X)
        check_loss(self.loss_function_, few, targets[:FEW])
        weighting = self._weighting(targets)
        validation = None
        if stopping is not None and stopping.n_epochs is None:
            known = model.module, stopping, held_out, X, targets
            rows = self._validation_rows(*known)
            validation = self._validation(stopping, *rows, epoch)
        return TrainingProblem(
            model,
            self.loss_function_,
            recipe,
            X,
            targets,
            weighting,
            epoch,
            validation,
            held_out,
        )

    def _weighting(self, targets):
        """Return what classes make of the weights of rows."""
        return RowWeighting(self.loss_function_.row_weights(targets))

    def _device(self):
        check_device(self.device)
        return torch.device(self.device)

    def _optimizer(self):
        decay = float(self.weight_decay)
        if isinstance(self.optimizer, Optimizer):
            if self.optimizer.weight_decay is not None:
                return self.optimizer
            return replace(self.optimizer, weight_decay=decay)
        valid = [isinstance(beta, Real) and 0 <= beta < 1 for beta in self.betas]
        if len(valid) != 2 or not all(valid):
            raise ValueError(
                f"betas must be two numbers in [0, 1), got {self.betas!r}."
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs momentum > 0; got momentum=0.")
        kind = OPTIMIZERS[self.optimizer]
        options = {name: getattr(self, name) for name in kind.from_estimator}
        return kind(weight_decay=decay, **options)

    def _build_module(self, X, seed):
        n_outputs = self.n_outputs_
        if self.module is None:
            sizes = np.asarray(self.hidden_layer_sizes)
            if sizes.ndim == 0:
                raise ValueError(
                    f"hidden_layer_sizes={sizes} must be a tuple with the width of "
                    f"each hidden layer: one layer is ({sizes},)."
                )
            whole = sizes.size == 0 or sizes.dtype.kind in "iu"
            if sizes.ndim != 1 or not whole or (sizes < 1).any():
                raise ValueError(
                    "hidden_layer_sizes must hold whole numbers of at least 1, got "
                    f"{self.hidden_layer_sizes!r}."
                )
            module = build_mlp(
                X.shape[1], sizes.astype(int).tolist(), n_outputs, self.activation, seed
            )
        elif isinstance(self.module, nn.Module):
            module, X = as_it_takes(uncompiled_copy(self.module), X)
        else:
            shape = X.shape[1] if X.ndim == 2 else tuple(X.shape[1:])
            check_factory(self.module, shape, n_outputs)
            module = call_seeded(self.module, shape, n_outputs, seed)
            if not isinstance(module, nn.Module):
                raise TypeError(
                    "module(n_features, n_outputs) must return a torch.nn.Module, got "
                    f"{type(module)}."
                )
            module, X = as_it_takes(uncompiled_copy(module), X)
        module = module.to(device=X.device, dtype=X.dtype)
        materialise(module, X[:FEW], seed)
        with seeded(seed):  # a module that draws numbers may be refused
            check_module(module, X[:FEW], n_outputs, self.loss_function_)
        return module

    def _check_rebuilt(self, module, X, seed):
        """Raise unless building the module again gives the same weights."""
        if self.module is None or isinstance(self.module, nn.Module):
            return
        again = self._build_module(X, seed).state_dict()
        for name, tensor in module.state_dict().items():
            if not torch.equal(tensor, again[name]):
                raise ValueError(
                    f"module built twice from one random_state has other {name}: it "
                    "draws from a generator that is not seeded. Draw from torch's "
                    "global generator, as torch.nn.init does, or from NumPy's."
                )

    def _stack(
        self, X, y, weights, *, random_state, masks=None, n_jobs=None, verbose=0
    ):
        """Train once per weighting of the rows; return model and `Trained`.

        ``self`` must have its targets encoded and is not changed. ``masks`` (M,) are
        seeds of the random numbers of layers; None is one for all.
        """
        problem = self._problem(X, y, random_state)
        found = train_stack(
            problem.model,
            problem.loss,
            problem.recipe,
            problem.X,
            problem.targets,
            problem.weighted(weights),
            memory_bytes=memory_cap(),
            seeds=None if masks is None else torch.tensor(masks).to(problem.X.device),
            validation=problem.validation,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        return problem.model, found

    def _stack_size(self, X, y):
        """Return how many models a stack holds under the memory cap."""
        problem = self._problem(X, y, 0)
        return stack_size(problem.model, problem.recipe, problem.X, memory_cap())

    def _retrained_outputs(self, X_query, **options):
        """Train once per weighting of the rows; return outputs (M, q, C)."""
        model, found = self._stack(**options)
        check_whole(model.module, X_query)
        queries = as_tensor(X_query, found.params)
        return stacked_outputs(model, found.params, queries, memory_cap())

    def __getstate__(self):
        state = super().__getstate__()
        module = state.get("module_")
        if module is not None and any(
            p.device.type != "cpu" for p in module.parameters()
        ):
            # a pickle must load on a machine without this device
            state = {**state, "module_": copy.deepcopy(module).cpu()}
        return state


def untrained(estimator, X, y, random_state=0):
    """Return what an estimator would be trained on, without training it."""
    blank = clone(estimator)
    blank._validate_params()
    return blank._problem(X, blank._learn_target(y, X), random_state)


def check_seeds(model, name, n_seeds):
    """Raise if several seeds are requested of one recorded run."""
    if n_seeds > 1 and model.one_run:
        raise ValueError(
            f"{name}={n_seeds} needs an estimator that can be trained from other "
            f"seeds; a recorded run has one start and one order. Use {name}=1."
        )


def replay_error(again, end, initial):
    """Return the error of a replay, as a share of the distance that training moved.

    It is 0 where it may be rounding.
    """
    distance = (end - initial.to(end)).norm()
    error = float((again - end.to(again)).norm() / distance.clamp(min=1e-12))
    return 0.0 if error < _REPLAY_TOLERANCE else error
