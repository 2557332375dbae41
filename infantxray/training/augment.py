"""Normalisation and augmentation, on the device, inside the jitted step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from infantxray.models.input_scale import IMAGENET

MEAN, STD = IMAGENET.mean, IMAGENET.std


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to training images. 0 switches one off; the default changes nothing.

    Attributes:
      rotation_degrees: rotations are drawn from plus or minus this.
      scale: relative, up and down.
      shift: of the image side, in each direction.
      contrast: relative.
      brightness: of the intensity range.
      gamma: in log units.
      noise: largest standard deviation, of the intensity range; each image has 0 to that.
      erase: largest side of a square that is set to the image's mean, of the image side.
      flip_left_right, flip_up_down: flip half of the images.
    """

    rotation_degrees: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    flip_left_right: bool = False
    flip_up_down: bool = False


def normalise(image: jax.Array, mean: float = MEAN, std: float = STD) -> jax.Array:
    """Shifts and scales intensities in [0, 1] to the input scale of a network."""
    return (image - mean) / std


def denormalise(image: jax.Array, mean: float = MEAN, std: float = STD) -> jax.Array:
    """The inverse of `normalise`."""
    return image * std + mean


def to_intensity(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def augment(image: jax.Array, key: jax.Array, settings: Augmentation) -> jax.Array:
    """A random variation of each image.

    Geometry (rotation, scale, shift, and flips where asked for) is one bilinear resampling; then
    contrast, brightness, gamma, erasing and noise. Every example has a key of its own, so the
    result does not depend on how the batch is spread over devices.

    Args:
      image: intensities in [0, 1], `[B, H, W, 1]`.
      key: one key for the batch, or a key for each image, `[B]`.
      settings: the size of each change.

    Returns:
      `[B, H, W, 1]`, in [0, 1].
    """
    keys = key if key.ndim else example_keys(key, len(image))
    return jax.vmap(lambda x, k: _augment_one(x, k, settings))(image, keys)


def example_keys(key: jax.Array, count: int, start: int = 0) -> jax.Array:
    """Keys `[count]` of the examples from number `start` on, independent of the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(count))


def _augment_one(image: jax.Array, key: jax.Array, settings: Augmentation) -> jax.Array:
    geometry_key, tone_key, noise_key = jax.random.split(key, 3)
    image = _resample(image, geometry_key, settings)
    image = _tone(image, tone_key, settings)
    if settings.erase:
        image = _erase(image, jax.random.fold_in(key, 3), settings)
    if settings.noise:
        # Includes no noise: a network trained on noisy images alone misreads clean ones.
        deviation = settings.noise * jax.random.uniform(jax.random.fold_in(noise_key, 0))
        image = image + deviation * jax.random.normal(noise_key, image.shape)
    return jnp.clip(image, 0.0, 1.0)


def _resample(image: jax.Array, key: jax.Array, settings: Augmentation) -> jax.Array:
    """Rotation, scale, shift and flips about the centre; the outside is black."""
    height, width = image.shape[:2]
    u = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    angle = u[0] * jnp.deg2rad(settings.rotation_degrees)
    scale = jnp.exp(u[1] * jnp.log1p(settings.scale))
    shift = u[2:] * settings.shift * jnp.array([height, width])
    flip = jnp.ones(2)
    for axis, asked in enumerate((settings.flip_up_down, settings.flip_left_right)):
        if asked:
            sign = jax.random.rademacher(jax.random.fold_in(key, axis), (), jnp.float32)
            flip = flip.at[axis].set(sign)
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = flip[0] * (cos * y - sin * x) + (height - 1) / 2 + shift[0]
    columns = flip[1] * (sin * y + cos * x) + (width - 1) / 2 + shift[1]
    return _bilinear(image, rows, columns)


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`image` `[H, W, 1]` read at fractional `rows` and `columns`, both `[H, W]`."""
    height, width = image.shape[:2]
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top, columns - left
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    flat = image.reshape(-1)

    def read(y: jax.Array, x: jax.Array) -> jax.Array:
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        return jnp.where(inside, flat[at], 0.0)

    above = read(top, left) * (1 - right) + read(top, left + 1) * right
    below = read(top + 1, left) * (1 - right) + read(top + 1, left + 1) * right
    return (above * (1 - down) + below * down)[..., None]


def _tone(image: jax.Array, key: jax.Array, settings: Augmentation) -> jax.Array:
    u = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    mean = image.mean()
    image = (image - mean) * (1.0 + settings.contrast * u[0]) + mean
    image = image + settings.brightness * u[1]
    return jnp.clip(image, 0.0, 1.0) ** jnp.exp(settings.gamma * u[2])


def _erase(image: jax.Array, key: jax.Array, settings: Augmentation) -> jax.Array:
    """A square of random size and place takes the image's mean (Zhong et al., AAAI 2020)."""
    height, width = image.shape[:2]
    side, y, x = jax.random.uniform(key, (3,))
    half = 0.5 * side * settings.erase * min(height, width)
    rows = jnp.abs(jnp.arange(height, dtype=jnp.float32) + 0.5 - y * height) < half
    columns = jnp.abs(jnp.arange(width, dtype=jnp.float32) + 0.5 - x * width) < half
    return jnp.where((rows[:, None] & columns[None, :])[..., None], image.mean(), image)
