import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.ndimage import gaussian_filter
from skimage.feature import hog as skimage_hog

from configs import pretrain
from infantxray.commands.pretrain import _objective_settings
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.stage_one.objectives.masking import hog, patch_size
from infantxray.stage_one.objectives.views import blur, two_views
from infantxray.stage_one.probe import effective_rank
from infantxray.stage_one.training import make_task
from infantxray.training.augment import MEAN, STD, Augmentation
from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState
from infantxray.training.train_step import make_train_step

SIDE = 32


class Encoder(nn.Module):
    """As small as an encoder can be."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(64, (32, 32), (32, 32), dtype=self.dtype, name="conv")(image)
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return (None, None, None, nn.relu(x))


class Says(nn.Module):
    """Instead of a network: it answers with its parameters, whatever it is shown."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, image, *, train):
        self.variable("batch_stats", "shown", lambda: image).value = image
        return self.param("values", nn.initializers.normal(1.0), self.shape)


def build(name, dtype=jnp.float32, image_size=SIDE):
    config = pretrain.get_config()
    config.data.image_size = image_size
    return OBJECTIVES[name](Encoder(dtype=dtype), dtype, _objective_settings(config))


def answering(name, shape):
    """The objective with `Says` for its model, and variables."""
    objective = build(name, image_size=2 * SIDE)
    objective.model = Says(shape)
    key = jax.random.key(3)
    return objective, objective.model.init(key, jnp.zeros((2, 2 * SIDE, 2 * SIDE, 1)), train=False)


@functools.cache
def create(name):
    """An objective and fresh variables."""
    objective = build(name)
    image = jnp.zeros((1, SIDE, SIDE, 1))
    init = jax.jit(lambda key: objective.init(key, image))
    return objective, jax.device_get(init(jax.random.key(0)))


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def created(request):
    return create(request.param)


@pytest.fixture(scope="module")
def objective(created):
    return created[0]


@pytest.fixture(scope="module")
def variables(created):
    return created[1]


@pytest.fixture(scope="module")
def images():
    """Images of different brightness, with a gradient each."""
    ramp = np.linspace(0, 0.4, SIDE)[None, :, None, None]
    level = np.array([0.1, 0.3, 0.5, 0.6])[:, None, None, None]
    return np.broadcast_to(level + ramp, (4, SIDE, SIDE, 1)).astype(np.float32)


@functools.cache
def compiled(objective, train):
    return jax.jit(lambda v, x, k: objective.loss(v, x, k, train=train))


def loss(objective, variables, images, key=0, train=True):
    return jax.device_get(compiled(objective, train)(variables, images, jax.random.key(key)))


def test_contract(objective, variables, images):
    """What stage one and stage two rely on, for every objective."""
    assert set(variables) == {"params", "batch_stats"}
    assert "encoder" in variables["params"]
    assert "encoder" in variables["batch_stats"]
    values, batch_stats = loss(objective, variables, images)
    assert values.shape == (4,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert jax.tree.structure(batch_stats) == jax.tree.structure(variables["batch_stats"])
    assert objective.name
    pictures = jax.device_get(jax.jit(objective.panels)(variables, images))
    assert len(pictures) == len(objective.panel_names)
    times = pictures[0].shape[1] // SIDE
    for picture in pictures:
        assert picture.shape == (4, times * SIDE, times * SIDE, 1)
        assert picture.min() >= 0.0
        assert picture.max() <= 1.0


def test_statistics_move_in_training_alone(objective, variables, images):
    _, moved = loss(objective, variables, images)
    _, kept = loss(objective, variables, images, train=False)
    before = variables["batch_stats"]
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, before)
    assert difference["encoder"]["norm"]["mean"] > 0
    jax.tree.map(np.testing.assert_array_equal, kept, before)


def test_in_evaluation_a_image_is_judged_alone(objective, variables, images):
    together = loss(objective, variables, images, train=False)[0]
    for i in range(4):
        alone = loss(objective, variables, np.repeat(images[i : i + 1], 4, axis=0), train=False)[0]
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-4)


def test_every_parameter_learns(objective, variables, images):
    def mean(params):
        values, _ = objective.loss({**variables, "params": params}, images, jax.random.key(0),
                                   train=True)  # fmt: skip
        return values.mean()

    # At the very start the last layer is almost zero: one step wakes up what is before it.
    params = variables["params"]
    tx = optax.adam(1e-2)

    @jax.jit  # Without a loop: XLA runs convolutions in loops on one core.
    def step(params, state, seen):
        value, grads = jax.value_and_grad(mean)(params)
        updates, state = tx.update(grads, state)
        seen = jax.tree.map(lambda s, g: jnp.maximum(s, jnp.abs(g).max()), seen, grads)
        return optax.apply_updates(params, updates), state, seen, value

    state, seen, values = tx.init(params), jax.tree.map(lambda _: 0.0, params), []
    for _ in range(40):
        params, state, seen, value = step(params, state, seen)
        values.append(float(value))
    assert np.mean(values[-5:]) < 0.6 * values[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        assert leaf > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_bfloat16_gives_float32_losses(name, images):
    objective = build(name, dtype=jnp.bfloat16)

    def run(image, key):
        variables = objective.init(key, image)
        return variables, objective.loss(variables, image, key, train=True)

    for leaf in jax.tree.leaves(jax.eval_shape(run, images, jax.random.key(0))):
        assert leaf.dtype == jnp.float32


class TestL1:
    @pytest.fixture
    def fresh(self):
        objective, variables = create("l1")
        params = variables["params"]
        # A decoder that says zero: the grey level that normalisation takes for the middle.
        silent = jax.tree.map(np.zeros_like, params["decoder"]["output"])
        decoder = params["decoder"] | {"output": silent}
        return objective, variables | {"params": params | {"decoder": decoder}}

    def test_units_are_the_full_intensity_range(self, fresh, images):
        objective, variables = fresh
        values, _ = loss(objective, variables, images)
        np.testing.assert_allclose(values, np.abs(images - MEAN).mean(axis=(1, 2, 3)), rtol=1e-4)

    def test_panels_are_input_reconstruction_difference(self, fresh, images):
        objective, variables = fresh
        shown, reconstruction, difference = jax.jit(objective.panels)(variables, images)
        np.testing.assert_array_equal(shown, images)
        np.testing.assert_allclose(reconstruction, MEAN, rtol=1e-5)
        np.testing.assert_allclose(difference, np.abs(images - MEAN), rtol=1e-4, atol=1e-6)

    def test_the_loss_is_not_random(self, fresh, images):
        np.testing.assert_array_equal(
            loss(*fresh, images, key=0)[0], loss(*fresh, images, key=1)[0]
        )


def textures(count=2, side=2 * SIDE, seed=0):
    """Images of 256 grey levels with edges in all directions, and a black margin."""
    rng = np.random.default_rng(seed)
    radiographs = gaussian_filter(rng.normal(size=(count, side, side)), (0, 2, 2))
    radiographs = np.rint(np.clip(0.5 + radiographs, 0, 1) * 255) / 255
    radiographs[:, :, : side // 8] = 0
    return radiographs[..., None].astype(np.float32)


@jax.jit
def make_views(image, key):
    return two_views(image, key, _objective_settings(pretrain.get_config()))


def reference_hog(image, cell):
    """`[B, H, W, 1]` -> `[B, H / cell, W / cell, 9]`."""
    return np.stack(
        [
            skimage_hog(
                radiograph,
                orientations=9,
                pixels_per_cell=(cell, cell),
                cells_per_block=(1, 1),
                block_norm="L2",
                feature_vector=False,
            )[:, :, 0, 0]
            for radiograph in image[..., 0]
        ]
    )


def reference_pixels(image, patch):
    target = np.empty(image.shape)
    for radiograph, out in zip(image.astype(np.float64), target, strict=True):
        for y in range(0, radiograph.shape[0], patch):
            for x in range(0, radiograph.shape[1], patch):
                part = radiograph[y : y + patch, x : x + patch]
                out[y : y + patch, x : x + patch] = (part - part.mean()) / (
                    part.var() + 1e-6
                ) ** 0.5
    return target


def test_one_and_four_devices_agree(objective, variables, images):
    """Masks, noise and views belong to the image, and statistics to the whole batch."""
    sharding = DataParallel(jax.devices()[:4])
    shared = jax.device_put(images, sharding.batch)
    assert len(shared.sharding.device_set) == 4
    one = loss(objective, variables, images, key=5)
    four = loss(objective, jax.device_put(variables, sharding.replicated), shared, key=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, four)


def test_gradient_is_the_slope_of_the_loss(objective, variables, images):
    """Of the encoder and of the rest, along the gradient; SimSiam's projections are held fixed."""
    key = jax.random.key(1)
    images = images + 0.1 * textures(4, SIDE)
    rng = np.random.default_rng(0)
    # Away from the start, where the last layer is almost zero.
    start = jax.tree.map(
        lambda p: p + 0.05 * rng.normal(size=p.shape).astype(np.float32), variables["params"]
    )
    gradient = jax.device_get(
        jax.jit(
            jax.grad(
                lambda p: objective.loss(variables | {"params": p}, images, key, train=False)[
                    0
                ].mean()
            )
        )(start)
    )

    if objective.name == "simsiam":
        shown = (make_views(images, key).reshape(8, SIDE, SIDE, 1) - MEAN) / STD
        apply = jax.jit(
            lambda p: objective.model.apply(variables | {"params": p}, shown, train=False)
        )
        fixed = apply(start)[0]

        def value(params):
            return reference_simsiam(fixed, apply(params)[1]).mean()

    else:

        def value(params):
            values, _ = loss(objective, variables | {"params": params}, images, 1, train=False)
            return values.astype(np.float64).mean()

    for within in (True, False):
        along = {
            name: jax.tree.map(lambda g: g if (name == "encoder") == within else 0 * g, tree)  # noqa: B023
            for name, tree in gradient.items()
        }
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(along)))
        assert norm > 0
        step = 2e-3 / norm
        ahead, behind = (
            value(jax.tree.map(lambda p, g: p + sign * step * g, start, along))  # noqa: B023
            for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(norm**2, rel=0.03)


class TestDenoise:
    def test_the_clean_image_is_the_target_of_what_is_said_of_a_noisy_one(self):
        image = textures()
        objective, variables = answering("denoise", image.shape)
        values, stats = objective.loss(variables, image, jax.random.key(0), train=True)
        said = np.asarray(variables["params"]["values"]) * STD + MEAN
        np.testing.assert_allclose(values, np.abs(said - image).mean(axis=(1, 2, 3)), rtol=1e-5)
        noise = np.asarray(stats["shown"]) * STD + MEAN - image
        assert noise.std() == pytest.approx(0.2, rel=0.05)
        assert np.abs(noise.mean(axis=(1, 2, 3))).max() < 0.02
        assert np.abs(noise[0] - noise[1]).max() > 0.2  # Each image has its own.


class TestMasking:
    @pytest.mark.parametrize(
        ("side", "patch"),
        [(32, 4), (64, 8), (96, 16), (128, 16), (160, 16), (192, 32), (224, 32), (512, 32)],
    )
    def test_patches_grow_with_the_image(self, side, patch):
        assert patch_size(0, side) == patch
        assert patch_size(4, side) == 4
        assert side % patch == 0

    @pytest.mark.parametrize("name", ["masked_pixels", "masked_hog"])
    def test_nothing_of_hidden_patches_is_left(self, name):
        objective, image, key = build(name, image_size=64), textures(), jax.random.key(0)
        seen, hidden = map(np.asarray, objective.hide(image, key))
        # By patches: each is hidden whole or not at all, 60 % of the 64.
        cells = objective._patch // objective.cell
        patches = hidden.reshape(2, 8, cells, 8, cells)
        assert (patches == patches[:, :, :1, :, :1]).all()
        np.testing.assert_array_equal(patches[:, :, 0, :, 0].sum(axis=(1, 2)), [38, 38])
        assert (patches[0] != patches[1]).any()
        assert (np.asarray(objective.hide(image, jax.random.key(1))[1]) != hidden).any()
        under = hidden.repeat(objective.cell, axis=1).repeat(objective.cell, axis=2)[..., None]
        np.testing.assert_array_equal(seen, np.where(under, np.float32(MEAN), image))
        # The network sees the same, whatever is under the mask.
        other = np.where(under, textures(seed=9), image)
        assert (other != image).any()
        np.testing.assert_array_equal(objective.hide(other, key)[0], seen)

    @pytest.mark.parametrize("name", ["masked_pixels", "masked_hog"])
    def test_loss_and_gradient_are_those_of_hidden_cells(self, name):
        image, key = textures(), jax.random.key(0)
        target = {
            "masked_pixels": lambda: reference_pixels(image, 8),
            "masked_hog": lambda: reference_hog(image, 4),
        }[name]()
        objective, variables = answering(name, target.shape)
        said = np.asarray(variables["params"]["values"])
        hidden = np.asarray(objective.hide(image, key)[1])[..., None]
        share = hidden / hidden.sum(axis=(1, 2, 3), keepdims=True)
        difference = said - target
        values, stats = objective.loss(variables, image, key, train=True)
        np.testing.assert_allclose(values, (share * difference**2).sum(axis=(1, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(
            stats["shown"], (np.asarray(objective.hide(image, key)[0]) - MEAN) / STD, atol=1e-5
        )
        gradient = jax.grad(
            lambda p: objective.loss(variables | {"params": p}, image, key, train=True)[0].sum()
        )(variables["params"])["values"]
        np.testing.assert_allclose(gradient, 2 * share * difference, rtol=1e-3, atol=1e-7)
        assert (np.asarray(gradient)[~np.broadcast_to(hidden, target.shape)] == 0).all()

    @pytest.mark.parametrize("cell", [2, 4, 16])
    def test_histograms_are_those_of_scikit_image(self, cell):
        image = textures(3)
        image[0] = np.linspace(0, 1, 64)[None, :, None]  # Straight right,
        image[1] = np.linspace(1, 0, 64)[:, None, None]  # straight up.
        image[2, :, 8:16] = 0.5  # Flat cells beside a step.
        found = jax.jit(hog, static_argnums=1)(image, cell)
        np.testing.assert_allclose(found, reference_hog(image, cell), atol=1e-4)
        assert (np.asarray(found)[2, :, 0] == 0).all() == (cell < 8)

    def test_strokes_run_along_edges(self):
        upright = np.zeros((1, 64, 64, 1), np.float32)
        upright[:, :, 32:] = 1.0
        objective = build("masked_hog", image_size=64)
        for image, along in ((upright, 1), (upright.transpose(0, 2, 1, 3), 2)):
            picture = np.asarray(objective.draw(objective.target(image)))
            assert picture.max() > 0.6
            # Brightness changes less along the edge than across it.
            slope = [np.abs(np.diff(picture, axis=axis)).sum() for axis in (1, 2)]
            assert slope[along - 1] < 0.6 * slope[2 - along]

    def test_panels_show_predictions_where_something_was_hidden(self):
        image = textures()
        objective, variables = answering("masked_pixels", image.shape)
        shown, seen, target, prediction = objective.panels(variables, image)
        np.testing.assert_array_equal(shown, image)
        said = np.clip(0.5 + np.asarray(variables["params"]["values"]) / 6, 0, 1)
        hidden = np.asarray(objective.hide(image, jax.random.key(0))[1])[..., None]
        np.testing.assert_allclose(prediction, np.where(hidden, said, 0.5), atol=1e-6)
        np.testing.assert_array_equal(seen, np.where(hidden, np.float32(MEAN), image))
        np.testing.assert_allclose(target, np.clip(0.5 + reference_pixels(image, 8) / 6, 0, 1),
                                   atol=1e-3)  # fmt: skip


def reference_simsiam(projection, prediction):
    """Rows 2 i and 2 i + 1 are the views of image i -> its loss."""
    z, p = (np.asarray(x, np.float64) for x in (projection, prediction))
    cosine = [
        [z[2 * i + 1 - view] @ p[2 * i + view] for view in (0, 1)] for i in range(len(z) // 2)
    ]
    lengths = [
        [np.linalg.norm(z[2 * i + 1 - view]) * np.linalg.norm(p[2 * i + view]) for view in (0, 1)]
        for i in range(len(z) // 2)
    ]
    return 1 - (np.array(cosine) / np.array(lengths)).mean(axis=1)


class TestSimSiam:
    @pytest.mark.parametrize("train", [True, False])
    def test_loss_is_one_minus_the_cosine_across_views(self, train):
        objective, variables = create("simsiam")
        image, key = textures(4, SIDE), jax.random.key(2)
        views = make_views(image, key).reshape(8, SIDE, SIDE, 1)
        apply = jax.jit(lambda v, x: objective.model.apply(
            v, x, train=train, mutable=["batch_stats"])[0])  # fmt: skip
        outputs = apply(variables, (views - MEAN) / STD)
        values, _ = loss(objective, variables, image, key=2, train=train)
        np.testing.assert_allclose(values, reference_simsiam(*outputs), atol=1e-4)
        if train:  # Images are spread in every direction, whatever the weights are.
            np.testing.assert_allclose(outputs[0].mean(axis=0), 0, atol=1e-4)
            assert np.median(outputs[0].std(axis=0)) == pytest.approx(1, abs=0.01)

    def test_views_keep_sides(self):
        image = np.full((16, SIDE, SIDE, 1), 0.2, np.float32)
        image[:, :, : SIDE // 2] = 0.8  # The image's left is bright.
        views = np.asarray(make_views(image, jax.random.key(0)))
        assert views.shape == (16, 2, SIDE, SIDE, 1)
        assert 0 <= views.min() <= views.max() <= 1
        # Nearly all: what was shifted in from outside is black.
        left, right = views[..., : SIDE // 2, :], views[..., SIDE // 2 :, :]
        assert (left.mean(axis=(2, 3, 4)) > right.mean(axis=(2, 3, 4))).mean() > 0.9
        # All 32 differ, the two of an image too.
        flat = views.reshape(32, -1)
        apart = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + np.eye(32)
        assert apart.min() > 1e-3

    def test_blur_is_that_of_scipy(self):
        image, key = textures(2, SIDE), jax.random.key(4)
        blurred = np.asarray(jax.jit(blur, static_argnums=2)(image, key, 1.5))
        for i in range(2):
            sigma = 1.5 * float(jax.random.uniform(jax.random.fold_in(key, i))) + 1e-3
            expected = gaussian_filter(image[i, ..., 0], sigma, mode="nearest", radius=5)
            np.testing.assert_allclose(blurred[i, ..., 0], expected, atol=1e-5)
            assert np.abs(expected - image[i, ..., 0]).max() > 0.01


class TestEffectiveRank:
    def test_counts_equal_directions(self):
        rng = np.random.default_rng(0)
        directions = rng.normal(size=(50, 5))
        directions -= directions.mean(0)
        directions = np.linalg.qr(directions)[0]  # Orthonormal, of mean zero.
        features = directions @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:5] + 7.0
        assert effective_rank(features.astype(np.float32)) == pytest.approx(5, abs=0.01)

    def test_collapse(self):
        line = np.linspace(-1, 1, 20)[:, None] * np.ones((1, 6))
        assert effective_rank(line) == pytest.approx(1, abs=0.01)
        assert effective_rank(np.ones((20, 6))) == 0


class TestBYOL:
    def test_the_teacher_is_the_moving_average_and_learns_from_nothing_else(self, images):
        objective, variables = create("byol")
        target = variables["batch_stats"]["target"]
        assert not any(name.startswith("predictor") for name in target["params"])
        jax.tree.map(
            np.testing.assert_array_equal,
            target["params"],
            {name: variables["params"][name] for name in target["params"]},
        )
        moved = jax.tree.map(lambda p: p + 1.0, variables["params"])
        _, stats = loss(objective, variables | {"params": moved}, images)
        stats = objective.after_step(moved, stats)
        jax.tree.map(
            lambda new, old: np.testing.assert_allclose(new, old + 0.9, rtol=1e-5, atol=1e-6),
            stats["target"]["params"],
            target["params"],
        )
        # From the momentum of a run's first step to the one that is set.
        late = {**variables["batch_stats"], "target": {**target, "step": np.float32(5000)}}
        stats = objective.after_step(moved, late)
        norm, before = (t["params"]["encoder"]["norm"]["bias"] for t in (stats["target"], target))
        np.testing.assert_allclose(norm, before + 0.01, rtol=1e-5, atol=1e-6)

    def test_parts_of_a_batch_move_the_teacher_as_the_whole_does(self, images):
        objective, variables = create("byol")
        task = make_task(objective, None, Augmentation(), batch_size=4, num_threads=1, seed=0)
        stats = variables["batch_stats"]
        apart = jax.tree.map(lambda p: p + 1.0, stats["target"]["params"])
        start = {**stats, "target": {**stats["target"], "params": apart}}
        sharding, tx = DataParallel(jax.devices()[:1]), optax.sgd(0.0)
        batch = {"image": np.uint8(255 * images), "mask": np.ones(len(images), np.float32)}
        targets = []
        for parts in (1, 4):
            begun = {"params": variables["params"], "batch_stats": start}
            state = TrainState.create(begun, tx, ema=False)
            step = make_train_step(task, tx, sharding, accumulate_steps=parts)
            state = sharding.replicate(jax.tree.map(np.array, state))
            for _ in range(3):
                state, _ = step(state, sharding.put(batch), jax.random.key(0))
            targets.append(jax.device_get(state.batch_stats["target"]))
        assert [target["step"] for target in targets] == [3, 3]
        one, four = (target["params"] for target in targets)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, four)

    def test_it_predicts_the_teacher_not_itself(self, images):
        objective, variables = create("byol")
        stats = variables["batch_stats"]
        other = jax.tree.map(lambda p: p[..., ::-1], stats["target"]["params"])
        changed = {**stats, "target": {**stats["target"], "params": other}}
        first, second = (
            loss(objective, variables | {"batch_stats": s}, images, train=False)[0]
            for s in (stats, changed)
        )
        assert np.abs(first - second).max() > 1e-3

    def test_the_loss_is_that_of_numpy(self, images):
        objective, variables = create("byol")
        stats = dict(variables["batch_stats"])
        target = stats.pop("target")
        rng = np.random.default_rng(0)
        teacher = {
            name: jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), tree)
            for name, tree in target["params"].items()
        }
        changed = {**stats, "target": {**target, "params": teacher}}
        key = 4
        found, _ = loss(objective, variables | {"batch_stats": changed}, images, key, train=False)
        shown = (make_views(images, jax.random.key(key)).reshape(8, SIDE, SIDE, 1) - MEAN) / STD
        params = variables["params"]
        own, other = (
            objective.model.apply({"params": p, "batch_stats": stats}, shown, train=False)
            for p in (params, {**params, **teacher})
        )
        np.testing.assert_allclose(found, reference_simsiam(other[0], own[1]), rtol=1e-4)
