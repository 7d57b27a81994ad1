"""What scripts of a fine-tuned language model share: its order, and the model itself.

They are called as `_order.py` says, and need transformers and peft besides. Beside the
file ORDER.npz, the folder ``model`` holds the model that was fine-tuned, as it was
before, and its tokenizer, as transformers saves them. ORDER.npz holds

- ``X`` (n, 2, T) and ``X_query``: tokens, and below each its successor where that is of
  the completion, else -1;
- ``start/<parameter>`` and ``end/<parameter>``: the adapters before and after the
  fine-tuning, named as in the body of a model of transformers;
- ``rows``, ``sizes`` and ``rates``: rows of all batches in order, how many of them are
  of each batch, and its learning rate;
- ``losses``, ``losses_query`` and ``logits``: what the fine-tuned model had as mean
  losses of completions, and as logits (N, V) of the tokens that count in queries;
- ``options`` as JSON: by_token, adapter, betas, eps, weight_decay, clip_norm,
  batch_size, random_state, and texts and queries, each prompts and completions.

A batch's loss is the mean over its texts of the mean over the tokens of each, or with
``by_token`` the mean over its tokens. A query's outcome is its log-likelihood.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

NOTHING = -1
#: between what the model of a peer computes and what it should
TOLERANCE = 1e-4
#: in the names of a model of peft
BODY = "base_model.model.model."


@dataclass(frozen=True)
class Texts:
    """A fine-tuned language model with its texts, and what is asked of the peer."""

    folder: Path
    X: torch.Tensor
    X_query: torch.Tensor
    losses: torch.Tensor
    losses_query: torch.Tensor
    logits: torch.Tensor
    start: dict
    end: dict
    batches: list
    rates: list
    options: dict
    #: whether this is all of it, so that a repeated run must end where it did
    whole: bool = True
    notes: list = field(default_factory=list)

    #: scores are all that is asked of packages
    subsets = torch.ones(0, 0)

    @property
    def random_state(self):
        return self.options["random_state"]

    @property
    def by_token(self):
        return self.options["by_token"]

    @property
    def both(self):
        """Rows and queries, as one array (n + q, 2, T)."""
        width = max(self.X.shape[2], self.X_query.shape[2])
        return torch.cat([widened(self.X, width), widened(self.X_query, width)])

    def yardstick(self):
        """Return NaN: costs are in trainings."""
        return float("nan")

    def warm_up(self, n_rows=8, n_queries=2, n_steps=2):
        """Return an order of the first texts, for the run that is not counted."""
        return replace(
            self,
            X=self.X[:n_rows],
            X_query=self.X_query[:n_queries],
            losses=self.losses[:n_rows],
            losses_query=self.losses_query[:n_queries],
            batches=[np.arange(n_rows)] * n_steps,
            rates=self.rates[:n_steps],
            whole=False,
        )

    # ------------------------------------------------------------------- model
    def base(self, **options):
        """Return a new model without adapters."""
        read = {"local_files_only": True, **options}
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.folder / "model", **read
        )

    def tokenizer(self):
        return transformers.AutoTokenizer.from_pretrained(
            self.folder / "model", local_files_only=True
        )

    def model(self, state=None, base=None):
        """Return a new model of peft, fine-tuned, or with other adapters.

        ValueError if the fine-tuned one does not compute what it should.
        """
        config = LoraConfig(
            **{"target_modules": "all-linear", "lora_dropout": 0.0}
            | self.options["adapter"],
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(self.base() if base is None else base, config).eval()
        put(model, self.end if state is None else state)
        if state is None:
            self._check(model)
        return model

    def _check(self, model):
        with torch.no_grad():
            found = [mean_losses(model, X) for X in (self.X, self.X_query)]
            pairs = [*zip(found, (self.losses, self.losses_query), strict=True)]
            if self.whole:
                pairs.append((logits(model, self.X_query)[0], self.logits))
        apart = max(float((a - b).abs().max()) for a, b in pairs)
        if not apart <= TOLERANCE:
            raise ValueError(f"the model is another one: outputs differ by {apart:.1e}")

    def weights(self, rows):
        """Return the weights (k,) of texts in a batch."""
        if self.by_token:
            return (self.X[rows, 1] != NOTHING).sum(1).float()
        return torch.ones(len(rows))

    def train_loss(self, model, rows):
        """Return the loss of a batch, before it is divided by its weights."""
        return (mean_losses(model, self.X[rows]) * self.weights(rows)).sum()

    # ---------------------------------------------------------------- training
    def optimizer(self, model):
        options = {k: self.options[k] for k in ("betas", "eps", "weight_decay")}
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=0.0, **options)

    def steps(self, model, optimizer):
        """Fine-tune a model, step by step."""
        trained = [p for p in model.parameters() if p.requires_grad]
        for rows, rate in zip(self.batches, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = self.train_loss(model, torch.as_tensor(rows))
            (loss / self.weights(rows).sum()).backward()
            nn.utils.clip_grad_norm_(trained, self.options["clip_norm"])
            optimizer.step()
            yield rows, rate

    def check_end(self, state):
        """Note it where a repeated run does not end where the fine-tuning did."""
        if not self.whole:
            return
        found, end, start = (
            torch.cat([one[k].detach().flatten() for k in self.end])
            for one in (state, self.end, self.start)
        )
        apart = float((found - end).norm() / (end - start).norm())
        print(f"the repeated run ends {apart:.1e} of the way from the fine-tuning")
        if not apart <= TOLERANCE:
            self.notes.append(f"its run ends elsewhere, by {apart:.1e} of the way")


def read_texts(path):
    with np.load(path) as file:
        arrays = dict(file)
    options = json.loads(str(arrays["options"]))
    names = ("X", "X_query", "losses", "losses_query", "logits")
    states = {
        kind: {
            name.removeprefix(f"{kind}/"): torch.tensor(value)
            for name, value in arrays.items()
            if name.startswith(f"{kind}/")
        }
        for kind in ("start", "end")
    }
    return Texts(
        folder=Path(path).parent,
        **{name: torch.tensor(arrays[name]) for name in names},
        **states,
        batches=np.split(arrays["rows"], np.cumsum(arrays["sizes"])[:-1]),
        rates=arrays["rates"].tolist(),
        options=options,
    )


def widened(X, width):
    """Return rows (n, 2, T) with nothing at their ends."""
    more = torch.tensor([0, NOTHING])[:, None].expand(len(X), 2, width - X.shape[2])
    return torch.cat([X, more], dim=2)


def put(model, state):
    """Give a model of peft other adapters."""
    named = dict(model.named_parameters())
    trained = {name for name, p in named.items() if p.requires_grad}
    if trained != {BODY + name for name in state}:
        raise ValueError("the adapters of peft are others than those of the order")
    with torch.no_grad():
        for name, value in state.items():
            named[BODY + name].copy_(value)


def taken(model):
    """Return the adapters of a model of peft by their names in an order."""
    named = model.named_parameters()
    return {k.removeprefix(BODY): p for k, p in named if p.requires_grad}


def adapters(model):
    """Return the names of the layers that are adapters."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and (".lora_A." in name or ".lora_B." in name)
    ]


def logits(model, X):
    """Return logits (N, V), targets and rows (N,) of the tokens that count."""
    row, place = (X[:, 1] != NOTHING).nonzero(as_tuple=True)
    whole = model(input_ids=X[:, 0], use_cache=False).logits
    return whole[row, place], X[row, 1, place], row


def mean_losses(model, X):
    """Return the mean losses (k,) of completions."""
    return summed_losses(model, X) / (X[:, 1] != NOTHING).sum(1)


def summed_losses(model, X):
    """Return the summed losses (k,) of completions: minus their log-likelihood."""
    found, targets, row = logits(model, X)
    losses = nn.functional.cross_entropy(found, targets, reduction="none")
    return torch.zeros(len(X)).index_add(0, row, losses)
