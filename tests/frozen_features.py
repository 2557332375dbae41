"""Features as encoders have them, and an encoder that compiles at once."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np


def clusters(n, seed, spread=1.0, k=3, d=5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(k, d)) * 3
    labels = rng.integers(k, size=n)
    features = centres[labels] + spread * rng.normal(size=(n, d))
    # Features of very different scales, as encoders have them.
    return (features * np.array([1, 100, 0.01, 1, 1]) + 50).astype(np.float32), labels


class Tiny(nn.Module):
    """An encoder that compiles at once: means of squares of 32 pixels, and their squares."""

    in_channels: int = 1
    dtype: jnp.dtype = jnp.float32
    num_features: int = 8

    @nn.compact
    def __call__(self, image, *, train):
        del train
        mean = nn.avg_pool(image, (32, 32), (32, 32))
        mean = nn.Dense(8)(jnp.concatenate([mean, mean**2], axis=-1))
        return (None, None, None, mean)
