import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from infantxray.training import augment
from infantxray.training.sharding import DataParallel

SIDE = 32


def settings(**values):
    """All off but `values`."""
    config = common.augment()
    for name in config:
        config[name] = type(config[name])(0)
    config.update(values)
    return config


def apply(image, config, seed=0):
    fn = jax.jit(lambda x, key: augment.augment(x, key, config))
    return np.asarray(fn(jnp.asarray(image, jnp.float32), jax.random.key(seed)))


def run(image, seed=0, **values):
    return apply(image, settings(**values), seed)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).uniform(0.05, 0.95, (4, SIDE, SIDE, 1)).astype(np.float32)


def spot(row, column, n=1, side=SIDE):
    """Images with one bright square of 3 x 3 pixels."""
    image = np.zeros((n, side, side, 1), np.float32)
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    return image


def centres(images):
    """Centre of mass of each image, pixels from the middle, `[B, 2]` (down, right)."""
    grid = np.stack(np.meshgrid(*[np.arange(SIDE) - (SIDE - 1) / 2] * 2, indexing="ij"), -1)
    weight = images / images.sum(axis=(1, 2), keepdims=True)
    return (weight * grid).sum(axis=(1, 2))


def test_normalise_and_back(noise):
    z = augment.normalise(jnp.asarray(noise))
    np.testing.assert_allclose(augment.denormalise(z), noise, atol=1e-6)
    assert augment.normalise(jnp.float32(augment.MEAN)) == 0.0


def test_to_intensity_covers_the_range():
    x = augment.to_intensity(jnp.array([0, 51, 255], jnp.uint8))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, [0.0, 0.2, 1.0], rtol=1e-6)


def test_all_off_is_the_identity(noise):
    np.testing.assert_allclose(run(noise), noise, atol=1e-6)


def test_the_default_stays_in_range_and_changes_every_image_differently(noise):
    out = apply(np.broadcast_to(noise[:1], noise.shape), common.augment())
    assert out.shape == noise.shape
    assert out.dtype == np.float32
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    for i in range(4):
        assert np.abs(out[i] - noise[0]).mean() > 0.01
        for j in range(i):
            assert np.abs(out[i] - out[j]).mean() > 0.01
    extreme = run(noise, contrast=0.9, brightness=0.9, gamma=3.0, noise=2.0)
    assert extreme.min() >= 0.0
    assert extreme.max() <= 1.0
    assert np.isfinite(extreme).all()


def test_no_flips_by_default():
    """A spot at the upper left stays there: sides and gravity are diagnoses."""
    image = np.repeat(spot(7, 7), 64, axis=0)
    config = common.augment()
    config.brightness = 0.0
    config.noise = 0.0
    assert (centres(apply(image, config)) < 0).all()


@pytest.mark.parametrize(("switch", "axis"), [("flip_up_down", 0), ("flip_left_right", 1)])
def test_each_flip_turns_its_own_axis_half_of_the_time(switch, axis):
    moved = centres(run(np.repeat(spot(7, 11), 200, axis=0), **{switch: True}))
    start = centres(spot(7, 11))[0]
    flipped = np.isclose(moved[:, axis], -start[axis], atol=1e-3)
    kept = np.isclose(moved[:, axis], start[axis], atol=1e-3)
    assert (flipped | kept).all()
    assert 60 < flipped.sum() < 140
    np.testing.assert_allclose(moved[:, 1 - axis], start[1 - axis], atol=1e-3)


def test_shifts_fill_their_range_in_both_directions_and_no_more():
    moved = centres(run(np.repeat(spot(15, 15), 400, axis=0), shift=0.25)) - centres(spot(15, 15))
    limit = 0.25 * SIDE
    assert np.abs(moved).max() <= limit + 1e-3
    for axis in range(2):
        assert moved[:, axis].max() > 0.9 * limit
        assert moved[:, axis].min() < -0.9 * limit
    # Down and right are drawn apart.
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.2


def test_rotations_fill_their_range_in_both_directions_about_the_centre():
    image = spot(15, 26)
    start = centres(image)[0]
    moved = centres(run(np.repeat(image, 400, axis=0), rotation_degrees=30.0))
    angle = np.degrees(np.arctan2(moved[:, 0], moved[:, 1]) - np.arctan2(start[0], start[1]))
    assert np.abs(angle).max() <= 30.5
    assert angle.max() > 27
    assert angle.min() < -27
    np.testing.assert_allclose(np.hypot(*moved.T), np.hypot(*start), atol=0.1)
    # A rotation, not a shear: a line through the centre in the other direction turns along.
    upright = spot(5, 15)
    turned = centres(run(np.repeat(upright, 400, axis=0), rotation_degrees=30.0))
    begin = centres(upright)[0]
    other = np.degrees(np.arctan2(turned[:, 0], turned[:, 1]) - np.arctan2(begin[0], begin[1]))
    np.testing.assert_allclose(other, angle, atol=1.5)


def test_rotation_and_scale_together_keep_angles():
    """What lies to the right and what lies above move alike, each within its own range."""
    polar = []
    for image in (spot(15, 24), spot(6, 15)):
        start = centres(image)[0]
        moved = centres(run(np.repeat(image, 200, axis=0), rotation_degrees=40.0, scale=0.3))
        angle = np.arctan2(moved[:, 0], moved[:, 1]) - np.arctan2(start[0], start[1])
        polar.append((angle, np.hypot(*moved.T) / np.hypot(*start)))
    np.testing.assert_allclose(polar[0][0], polar[1][0], atol=0.03)
    np.testing.assert_allclose(polar[0][1], polar[1][1], atol=0.03)
    for angle, ratio in polar:
        assert 36 < np.degrees(np.abs(angle).max()) < 41
        assert 1.2 < ratio.max() < 1.33
        assert 0.75 < ratio.min() < 0.83


def test_scale_goes_both_ways_by_the_stated_share():
    moved = centres(run(np.repeat(spot(15, 24), 400, axis=0), scale=0.25))[:, 1]
    ratio = moved / centres(spot(15, 24))[0, 1]
    assert ratio.max() == pytest.approx(1.25, abs=0.02)
    assert ratio.min() == pytest.approx(0.8, abs=0.02)


def test_what_comes_from_outside_is_black():
    out = run(np.ones((50, SIDE, SIDE, 1), np.float32), shift=0.5)
    assert ((out < 1e-6).any(axis=(1, 2, 3))).mean() > 0.9
    assert set(np.unique(np.round(out, 3))) >= {0.0, 1.0}


def test_brightness_contrast_and_gamma_do_what_they_say(noise):
    flat = np.full((300, 4, 4, 1), 0.5, np.float32)
    level = run(flat, brightness=0.1)[:, 0, 0, 0]
    assert level.min() == pytest.approx(0.4, abs=0.005)
    assert level.max() == pytest.approx(0.6, abs=0.005)
    # Gamma in log units: 0.5 ** exp(±g).
    level = run(flat, gamma=0.5)[:, 0, 0, 0]
    assert level.min() == pytest.approx(0.5 ** np.exp(0.5), abs=0.005)
    assert level.max() == pytest.approx(0.5 ** np.exp(-0.5), abs=0.005)
    # Contrast keeps the mean and scales the deviation.
    mild = 0.4 + 0.2 * np.repeat(noise[:1], 300, axis=0)
    out = run(mild, contrast=0.3)
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), mild[0].mean(), atol=1e-4)
    ratio = out.std(axis=(1, 2, 3)) / mild[0].std()
    assert ratio.min() == pytest.approx(0.7, abs=0.01)
    assert ratio.max() == pytest.approx(1.3, abs=0.01)


def test_noise_has_any_deviation_up_to_the_stated_one():
    """Down to clean images: those are what a network is used on."""
    out = run(np.full((400, 32, 32, 1), 0.5, np.float32), noise=0.05)
    deviation = (out - 0.5).std(axis=(1, 2, 3))
    assert deviation.max() < 0.0525
    # Uniform: a tenth of the images in each tenth of the range.
    share, _ = np.histogram(deviation, bins=10, range=(0, 0.05))
    assert share.min() > 20
    assert deviation.mean() == pytest.approx(0.025, rel=0.06)
    loud = np.argsort(deviation)[-2:]
    assert abs(np.corrcoef(out[loud[0]].ravel(), out[loud[1]].ravel())[0, 1]) < 0.1


def test_erasing_greys_out_one_square_up_to_the_stated_side():
    image = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))[None, ..., None]
    image = np.repeat(image, 200, axis=0)
    changed = run(image, erase=0.5) != image
    # The mean is 0.5, which no pixel has: what is erased is what changed.
    rows, columns = changed.any(axis=2)[..., 0], changed.any(axis=1)[..., 0]
    np.testing.assert_array_equal(changed[..., 0], rows[:, :, None] & columns[:, None, :])
    sides = np.maximum(rows.sum(1), columns.sum(1))
    assert 12 <= sides.max() <= 16
    assert sides.min() <= 3
    assert (np.abs(run(image, erase=0.5)[changed] - 0.5) < 1e-5).all()


def test_keys_decide(noise):
    on = {"rotation_degrees": 10.0, "noise": 0.1}
    np.testing.assert_array_equal(run(noise, **on), run(noise, **on))
    assert np.abs(run(noise, **on) - run(noise, seed=1, **on)).mean() > 0.01


def test_independent_of_how_many_devices_share_the_batch(noise):
    config = common.augment()
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        sharding = DataParallel(devices)
        fn = jax.jit(
            lambda x, key: augment.augment(x, key, config),
            in_shardings=(sharding.batch, sharding.replicated),
            out_shardings=sharding.batch,
        )
        results.append(np.asarray(fn(jax.device_put(noise, sharding.batch), jax.random.key(0))))
    assert len(jax.devices()) == 4
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
