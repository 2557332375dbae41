"""The training state: parameters, statistics and optimizer state."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint holds of the model.

    Attributes:
      step: how many updates were made, int32 `[]`.
      params: trainable parameters, float32.
      batch_stats: running statistics of BatchNorm, float32.
      opt_state: of the optimizer.
      ema_params: exponential moving average of `params`; an empty dictionary where it is off.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema_params: PyTree

    @classmethod
    def create(
        cls, variables: PyTree, optimizer: optax.GradientTransformation, *, ema: bool
    ) -> TrainState:
        """A state at step 0 from `model.init(...)`."""
        params = variables["params"]
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            # A copy: the state is donated to each step, and a buffer cannot be donated twice.
            ema_params=jax.tree.map(jnp.copy, params) if ema else {},
        )

    @property
    def eval_variables(self) -> PyTree:
        """The variables for evaluation: the moving average if there is one."""
        return {"params": self.ema_params or self.params, "batch_stats": self.batch_stats}
