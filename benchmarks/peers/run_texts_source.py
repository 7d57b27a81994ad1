"""SOURCE, and EK-FAC refined by conjugate gradients, by bergson 2.5.0.

See `_texts.py`. SOURCE (arXiv:2405.12186) has Kronecker factors of checkpoints along
the run, which is repeated here; its variant for Adam has their second moments as well.
What the factors of the end give is refined by products with the Gauss-Newton matrix, as
ASTRA does (arXiv:2507.14740), here by conjugate gradients on all texts.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _order import main
from _texts import read_texts, taken
from bergson.approx_unrolling.pipeline import approx_unrolling_pipeline
from bergson.config.config import (
    ApproxUnrollingConfig,
    AstraConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    InversionConfig,
    PreprocessConfig,
    ScoreConfig,
)
from bergson.hessians.pipeline import hessian_pipeline
from run_texts_bergson import POSITIONS, Saved

KRONECKER = HessianConfig(method="kfac", ev_correction=True)


def checkpoints(order, saved, n_checkpoints):
    """Repeat the run; return folders of its states, and the steps before each."""
    model = order.model(order.start, order.base(max_position_embeddings=POSITIONS))
    model.peft_config["default"].base_model_name_or_path = saved.path("base")
    optimizer, n_steps = order.optimizer(model), len(order.batches)
    marks = np.rint(np.linspace(0, n_steps, n_checkpoints + 1)[1:]).astype(int)
    folders = []
    for step, _ in enumerate(order.steps(model, optimizer), 1):
        if step in marks:
            folder = Path(saved.path(f"checkpoint-{step}"))
            model.save_pretrained(folder)
            model.config.save_pretrained(folder)
            order.tokenizer().save_pretrained(folder)
            torch.save(moments(model, optimizer), folder / "optimizer.pt")
            folders.append(str(folder))
    order.check_end(taken(model))
    return folders, marks


def moments(model, optimizer):
    """Return the optimizer's state as bergson reads it: with names."""
    known = optimizer.state_dict()
    named = [k for k, p in model.named_parameters() if p.requires_grad]
    state = {
        i: {**known["state"][i], "param_name": name} for i, name in enumerate(named)
    }
    return {"state": state, "param_groups": known["param_groups"]}


def source(order, segments=3, per_segment=2, adam=True, **inversion):
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(order, folder)
        folders, marks = checkpoints(order, saved, segments * per_segment)
        parts = np.split(
            np.array(order.rates), marks[per_segment - 1 : -1 : per_segment]
        )
        config = ApproxUnrollingConfig(
            checkpoints=folders,
            segments=segments,
            lr_list=[float(part.mean()) for part in parts],
            step_size_list=[len(part) for part in parts],
            # of SGD in the place of Adam: as its momentum is
            momentum=0.0 if adam else order.options["betas"][0],
            use_adam_preconditioner=adam,
            inversion_cfg=InversionConfig(**inversion),
            query=saved.query(),
        )
        approx_unrolling_pipeline(saved.index(IndexConfig), KRONECKER, config)
        return -saved.scores()  # here, a low one is of a text that helps


def refined(order, num_steps=10, **inversion):
    astra = {"num_steps": num_steps, "solver": "cg", "batch_size": len(order.X)}
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(order, folder)
        hessian_pipeline(
            saved.index(IndexConfig),
            KRONECKER,
            ScoreConfig(),
            PreprocessConfig(),
            HessianPipelineConfig(
                query=saved.query(),
                inversion_cfg=InversionConfig(**inversion),
                astra=AstraConfig(**astra),
            ),
        )
        return saved.scores()


METHODS = {
    "SOURCE": (
        source,
        [
            {},
            {"adam": False},
            {"damping_factor": 0.3},
            {"damping_factor": 1.0},
            {"segments": 1, "per_segment": 6},
        ],
    ),
    "EK-FAC with CG": (
        refined,
        [{}, {"damping_factor": 1.0}],
    ),
}

if __name__ == "__main__":
    main(METHODS, read_texts)
