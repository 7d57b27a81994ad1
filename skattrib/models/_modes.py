"""The trained module of an estimator: as it answers queries, and as it was trained."""

from skattrib.engine._functional import apart
from skattrib.engine._row_context import counter_names


class KeepsModes:
    """Methods of an estimator whose module may train otherwise than it answers."""

    def _keep(self, model, n_steps):
        """Store the trained module, as it answers queries."""
        self.module_ = model.module
        self._in_training = ()
        if not any(model.behaviour):
            return
        self._in_training = tuple(
            name for name, layer in self.module_.named_modules() if layer.training
        )
        self.module_.eval()
        held = dict(self.module_.named_buffers())
        for name in counter_names(self.module_):
            if name.rpartition(".")[0] in self._in_training:
                held[name] += n_steps

    def _module_in_training(self):
        """Return the trained module, its tensors shared, as it was trained."""
        names = getattr(self, "_in_training", ())
        if not names:
            return self.module_
        module = apart(self.module_)
        for name in names:
            module.get_submodule(name).training = True
        return module
