"""How much a frozen encoder knows about conditions: a linear classifier on its pooled last map."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

_ITERATIONS = 100
_L2 = 1e-2  # On standardised features.


def fit_linear(
    features: np.ndarray, labels: np.ndarray, num_classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, in `[0, num_classes)`.
      num_classes: K.

    Returns:
      A function from features `[M, D]` to probabilities `[M, K]`.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    x = jnp.asarray((features - mean) / std, jnp.float32)
    weights = _lbfgs(x, jnp.asarray(labels), num_classes)

    def predict(other: np.ndarray) -> np.ndarray:
        z = jnp.asarray((other - mean) / std, jnp.float32)
        return np.asarray(jax.nn.softmax(z @ weights["kernel"] + weights["bias"][None]))

    return predict


@functools.partial(jax.jit, static_argnums=2)
def _lbfgs(x: jax.Array, labels: jax.Array, num_classes: int):
    def loss(weights):
        logits = x @ weights["kernel"] + weights["bias"][None]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 0.5 * _L2 * (weights["kernel"] ** 2).sum()

    solver = optax.lbfgs()
    weights = {"kernel": jnp.zeros((x.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, solver.init(weights)), length=_ITERATIONS)
    return weights
