"""BYOL: predict the projection that a moving average of the network gives for another view.

Grill et al., "Bootstrap your own latent", NeurIPS 2020.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from infantxray.stage_one.objectives.base import PyTree
from infantxray.stage_one.objectives.simsiam import SimSiam, agreement
from infantxray.stage_one.objectives.views import two_views
from infantxray.training.augment import normalise


class BYOL(SimSiam):
    """`1 - cos(prediction of one view, the teacher's projection of the other)`, as in SimSiam.

    The teacher is the moving average of encoder and projector over the steps; it replaces
    SimSiam's stopped gradient and costs a second forward pass. It is stored in `batch_stats`, below
    `target`, because it is state without a gradient that belongs in the checkpoint. The network is
    SimSiam's, so that the two differ only in the teacher.
    """

    name = "byol"

    def init(self, key: jax.Array, image: jax.Array) -> PyTree:
        variables = super().init(key, image)
        stats = variables["batch_stats"]
        target = {"params": _teacher(variables["params"]), "batch_stats": _teacher(stats)}
        # Copies: the training step donates its state, and must not donate a buffer twice.
        target = jax.tree.map(lambda x: x.copy(), target) | {"step": jnp.zeros(())}
        return {**variables, "batch_stats": {**stats, "target": target}}

    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        params, stats = variables["params"], dict(variables["batch_stats"])
        target = stats.pop("target")
        views = two_views(image, key, self.settings)
        both = normalise(views.reshape(-1, *image.shape[1:]))
        (_, prediction), updated = self.model.apply(
            {"params": params, "batch_stats": stats}, both, train=train, mutable=["batch_stats"]
        )
        teacher = {
            "params": params | target["params"],
            "batch_stats": stats | target["batch_stats"],
        }
        (projection, _), moved = self.model.apply(
            teacher, both, train=train, mutable=["batch_stats"]
        )
        if train:
            target = {**target, "batch_stats": _teacher(moved["batch_stats"])}
        values = agreement(projection, prediction)
        return values, {**updated["batch_stats"], "target": target}

    def after_step(self, params: PyTree, batch_stats: PyTree) -> PyTree:
        """Moves the teacher's parameters, once a step into how many parts a batch may be cut."""
        target = batch_stats["target"]
        # A short memory at first: the teacher starts from random weights, also where the encoder
        # is that of an earlier stage one.
        step = target["step"]
        keep = jnp.minimum(self.settings.teacher_momentum, (1 + step) / (10 + step))
        moved = jax.tree.map(
            lambda old, new: keep * old + (1 - keep) * new, target["params"], _teacher(params)
        )
        return {**batch_stats, "target": {**target, "step": step + 1, "params": moved}}


def _teacher(tree: PyTree) -> PyTree:
    """The part of a tree that belongs to the teacher: all but the predictor."""
    return {name: value for name, value in tree.items() if not name.startswith("predictor")}
