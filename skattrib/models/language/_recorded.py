"""A language model whose fine-tuning is a recorded run."""

import copy

from skattrib.models.language._adapted import completion_losses
from skattrib.models.language._adapter_draws import dropout_of_adapters
from skattrib.models.language._blocks import body_of, find_blocks, private_copy
from skattrib.models.language._causal import CausalLanguageModel
from skattrib.models.language._network import CompletionLoss, TextNetwork
from skattrib.models.recording._estimators import _Recorded


def _sharing(module):
    """Return a copy of a module whose frozen weights and buffers are the same."""
    same = [p for p in module.parameters() if not p.requires_grad]
    same += module.buffers()
    return copy.deepcopy(module, {id(tensor): tensor for tensor in same})


class RecordedTextNetwork(_Recorded, TextNetwork):
    """What was trained of a `RecordedLanguageModel`.

    Parameters
    ----------
    module : CompletionLosses
        As it was before the run.
    recipe : Recipe
        The run.
    loss : CompletionLoss
    device : str or torch.device, default="cpu"
        Where to train.
    verbose : int, default=0
        Shows progress when above 0.
    """

    trains_adapters = True

    def _own_module(self, X):
        return _sharing(self.module).to(self._device()), X

    def __sklearn_clone__(self):
        # nothing changes the module: each use of it has a copy
        return type(self)(**self.get_params(deep=False))


class RecordedLanguageModel(CausalLanguageModel):
    """A language model whose fine-tuning is a recorded run.

    Parameters
    ----------
    model : nn.Module
        With adapters, as they were before the run.
    tokenizer : callable
        Its tokenizer.
    recipe : Recipe
        The run.
    max_length : int or None, default=None
        Tokens that are read at once; None is the model's context.
    add_bos, add_eos : bool
        Whether rows were begun, and ended, with the tokenizer's token for that.
    verbose : int, default=0
        Shows progress when above 0.
    """

    trainable, normalization = "adapters", "token"
    dtype = device = None

    def __init__(
        self,
        model,
        tokenizer,
        recipe,
        *,
        max_length=None,
        add_bos=False,
        add_eos=True,
        verbose=0,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.max_length = max_length
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.verbose = verbose

    def _network(self):
        loaded = self._load()
        names, first = trained_names(loaded.model)
        built = private_copy(loaded.model, names)
        for layer in dropout_of_adapters(built):
            layer.train()
        return RecordedTextNetwork(
            completion_losses(built, loaded, first),
            self.recipe,
            loss=CompletionLoss(by_token=True),
            device=str(loaded.layer.weight.device),
            verbose=self.verbose,
        )


def trained_names(model):
    """Return the names of what is trained of a model, and the first block with some.

    They are in the order in which a network has them.
    """
    body = body_of(model)
    of_blocks = find_blocks(body)[0]
    named = [name for name, p in body.named_parameters() if p.requires_grad]
    places = [
        int(name.removeprefix(f"{of_blocks}.").partition(".")[0]) for name in named
    ]
    return [f"{model.base_model_prefix}.{name}" for name in named], min(places)
