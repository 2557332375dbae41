import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import Preprocessing
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from data_pipeline.phantom import open_phantom, truth
from infantxray.evaluation import localisation, saliency
from infantxray.evaluation.localisation import Images
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.saliency import Explainer
from infantxray.models import ENCODERS, create_encoder
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.encoders import layers, resnet
from infantxray.training import augment

SIDE = 128  # Four by four cells.


def pooled(x, size):
    """Means of squares: `nn.avg_pool` without its slow gradient."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // size, size, width // size, size, channels).mean((2, 4))


class Brightness(nn.Module):
    """An encoder whose last map is how bright and how dark each 32 x 32 pixels are."""

    @nn.compact
    def __call__(self, image, *, train):
        del train
        mean = pooled(image, 32)
        return (None, None, None, nn.relu(jnp.concatenate([mean, -mean], axis=-1)))


@pytest.fixture(scope="module")
def model():
    """Class 0 is "something bright", class 1 "something dark", class 2 takes brightness as a no."""
    model = DiagnosisModel(Brightness(), num_classes=3, age_head=False)
    image = jnp.zeros((1, SIDE, SIDE, 1))
    variables = jax.device_get(model.init(jax.random.key(0), image, train=False))
    variables["params"]["condition_head"]["logits"]["kernel"] = np.array(
        [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]], np.float32
    )
    return model, variables


def radiograph(row, column, ground=0, spot=255):
    image = np.full((SIDE, SIDE, 1), ground, np.uint8)
    image[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = spot
    return image


def test_the_cell_that_speaks_for_the_class_is_found(model):
    images = np.stack([radiograph(0, 3), radiograph(2, 1)])
    maps = np.asarray(saliency.grad_cam(*model, images, jnp.array([0, 0])))
    assert maps.shape == (2, 4, 4)
    for found, (row, column) in zip(maps, [(0, 3), (2, 1)], strict=True):
        expected = np.zeros((4, 4))
        expected[row, column] = 1.0
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_image_is_explained_for_its_own_class(model):
    images = np.stack([radiograph(1, 2, ground=160, spot=20)] * 2)
    bright, dark = np.asarray(saliency.grad_cam(*model, images, jnp.array([0, 1])))
    assert dark[1, 2] == pytest.approx(1.0)
    assert dark.sum() == pytest.approx(1.0)
    assert bright[1, 2] == 0.0
    assert bright.sum() == pytest.approx(15.0)


def test_nothing_that_speaks_for_a_class_is_all_zero_and_not_nan(model):
    maps = np.asarray(saliency.grad_cam(*model, radiograph(0, 0)[None], jnp.array([2])))
    np.testing.assert_array_equal(maps, 0.0)


@pytest.mark.parametrize(
    ("size", "level"), [(32, 0), (64, 1), (96, 2), (160, 2), (192, 3), (224, 3)]
)
def test_the_default_level_has_six_cells_a_side(size, level):
    assert saliency.default_level(size) == level


LEVELS = [(name, 2 * (i % 2)) for i, name in enumerate(sorted(ENCODERS, reverse=True))]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        pytest.param(*case, marks=pytest.mark.slow) if case[0] == "hrnet_w32" else case
        for case in LEVELS
    ],
)
def test_every_encoder_is_split_at_a_level(name, level):
    """The program is traced, not compiled: the map has its stride, and the logits depend on it."""
    model = DiagnosisModel(create_encoder(name), num_classes=2, age_head=False)
    shape = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), shape)

    def split(variables, x):
        features, logits = saliency._split_at_level(model, variables, x, level)
        return features, logits(features)

    features, logits = jax.eval_shape(split, variables, shape)
    side = 64 // saliency.STRIDES[level]
    # Xception's stem is not padded.
    assert features.shape[1] in (side, side - 1 if (name, level) == ("xception", 0) else side)
    assert features.shape[-1] == model.encoder.pyramid_features[level]
    assert logits.shape == (1, 2)


def trained(name, **options):
    """A small network of this family with parameters that are not special."""
    model = DiagnosisModel(ENCODERS[name](**options), num_classes=2, age_head=False)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        v + 0.1 * jnp.abs(jax.random.normal(k, v.shape)) for k, v in zip(keys, leaves, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize("level", [0, 1])
def test_the_gradient_at_a_level_is_that_of_the_logit(level):
    """Against finite differences of the network, which is run from that level on by hand."""
    stages = tuple(resnet.Stage(f"conv{n}", 1, 4, 1 + (n > 2)) for n in range(2, 6))
    model, variables = trained("resnet50", stages=stages)
    x = jax.random.normal(jax.random.key(2), (1, 32, 32, 1))

    @jax.jit
    def forward(x):
        maps = model.apply(variables, x, method=lambda m, x: m.encoder(x, train=False))
        features, logits = saliency._split_at_level(model, variables, x, level)
        whole = model.apply(variables, x, train=False)["logits"]
        return features, maps[level], logits(features), whole

    features, expected, logits, whole = forward(x)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, whole, rtol=1e-4)

    def by_hand(features):
        """The blocks after the level, one by one, and the heads."""

        def rest(model, y):
            conv = functools.partial(layers.Conv, dtype=jnp.float32)
            norm = functools.partial(layers.BatchNorm, use_running_average=True, dtype=jnp.float32)
            for stage in stages[level + 1 :]:
                block = resnet.Bottleneck(
                    stage.width, 4 * stage.width, stage.strides, 1, conv, norm, parent=None
                )
                name = f"{stage.name}_1"
                part = {k: v["encoder"][name] for k, v in variables.items()}
                y = block.apply(part, y)
            return model.heads(y)["logits"]

        return model.apply(variables, features, method=rest)

    def ours(features):
        return saliency._split_at_level(model, variables, x, level)[1](features)

    ours, theirs = (jax.jit(jax.grad(lambda f, g=g: g(f)[0, 1]))(features) for g in (ours, by_hand))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert np.abs(ours).max() > 0


def test_a_finer_level_finds_a_smaller_spot():
    """A spot of 8 px, on an encoder that passes brightness from level to level."""

    class Pyramid(nn.Module):
        @nn.compact
        def __call__(self, image, *, train):
            del train
            maps = [nn.relu(pooled(image, 4))]
            for _ in range(3):
                maps.append(pooled(maps[-1], 2))
            return tuple(maps)

    model = DiagnosisModel(Pyramid(), num_classes=1, age_head=False)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 1)), train=False)
    variables["params"]["condition_head"]["logits"]["kernel"] = jnp.ones((1, 1))
    image = np.zeros((1, 64, 64, 1), np.uint8)
    image[0, 40:48, 16:24] = 255
    areas = [
        (
            Explainer(model, variables, level=level, batch_size=1)(image, np.array([0]))[0] > 0.5
        ).sum()
        for level in range(4)
    ]
    assert areas[0] <= areas[1] < areas[2] <= areas[3]
    found = Explainer(model, variables, level=0, batch_size=1)(image, np.array([0]))[0]
    assert found[42:46, 18:22].min() > 0.7


def test_integrated_gradients_add_up_to_the_logit():
    """Completeness, Sundararajan et al.'s axiom, and so from black."""
    stages = tuple(resnet.Stage(f"conv{n}", 1, 4, 1 + (n > 2)) for n in range(2, 6))
    model, variables = trained("resnet50", stages=stages)
    image = np.random.default_rng(0).integers(256, size=(2, 32, 32, 1), dtype=np.uint8)
    target = jnp.array([0, 1])
    found = saliency.integrated_gradients(model, variables, image, target, steps=100)
    logits = [
        model.apply(variables, augment.normalise(augment.to_intensity(x)), train=False)["logits"]
        for x in (image, np.zeros_like(image))
    ]
    difference = np.asarray(logits[0] - logits[1])[np.arange(2), target]
    np.testing.assert_allclose(np.asarray(found).sum((1, 2)), difference, rtol=0.02)


@pytest.fixture
def radiographs(tmp_path):
    """Five images: two of class a, two of class b, one unknown."""
    labels = ["a", "a", "b", "b", ""]
    for i in range(5):
        Image.fromarray(radiograph(i % 4, i // 2)[..., 0]).save(tmp_path / f"{i}.png")
    records = Records.create(
        [str(tmp_path / f"{i}.png") for i in range(5)], source="s", label=labels
    )
    return ImageSource(records, ("a", "b", "c"), Preprocessing(image_size=SIDE))


def predictions(source, rows, probabilities):
    n = len(rows)
    return Predictions(
        classes=("a", "b", "c"),
        probabilities=np.asarray(probabilities, np.float32),
        label=source.labels[rows],
        age_months=np.full(n, np.nan),
        age_predicted_months=np.full(n, np.nan),
        patient=np.arange(n).astype(object),
    )


def images_of(source, rows, boxes=lambda row, name: ()):
    return Images(load=lambda i: source[int(rows[i])]["image"], boxes=boxes)


@pytest.fixture
def explain(model):
    return Explainer(*model, level=3, batch_size=3)


def test_one_example_a_class_the_surest_right_or_wrong(explain, radiographs):
    rows = np.array([0, 1, 3, 4])  # Image 2 could not be read.
    probabilities = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]]
    images = images_of(radiographs, rows, lambda row, name: [(1, 2, 3, 4)] if row == 2 else ())
    answers = predictions(radiographs, rows, probabilities)
    found = localisation.examples(explain, images, answers)
    assert [(e.truth, e.predicted) for e in found] == [("a", "b"), ("b", "a")]
    assert [e.probability for e in found] == pytest.approx([0.7, 0.9])
    assert [example.boxes for example in found] == [(), ((1, 2, 3, 4),)]
    for example, row in zip(found, (1, 3), strict=True):
        np.testing.assert_array_equal(example.image, radiograph(row % 4, row // 2)[..., 0])
        assert example.image.dtype == np.uint8
        for shown in (example.predicted_map, example.true_map):
            assert shown.shape == (SIDE, SIDE)
            assert shown.min() >= 0.0
            assert shown.max() <= 1.0
    # Image 3: predicted "something bright", where its spot is; in truth "something dark".
    assert found[1].predicted_map[96:128, 32:64].mean() > 0.6
    assert found[1].predicted_map.mean() < 0.15
    assert found[1].true_map[96:128, 32:64].mean() < 0.4
    wrong = localisation.mistakes(explain, images, answers)
    assert [(e.truth, e.predicted) for e in wrong] == [("b", "a"), ("a", "b")]  # Surest first.


def test_nothing_to_explain(explain, radiographs):
    rows = np.array([4])
    images = images_of(radiographs, rows)
    unknown = predictions(radiographs, rows, [[1, 0, 0]])
    no_classes = Predictions((), np.zeros((1, 0)), *[np.zeros(1)] * 4)
    for answers in (unknown, no_classes):
        assert localisation.examples(explain, images, answers) == []
        assert localisation.mistakes(explain, images, answers) == []
        assert localisation.localisation(explain, images, answers) is None


def test_saliency_is_held_against_the_true_boxes(explain):
    """Of a model that looks where it is bright."""
    phantom = open_phantom("infant:films=200")
    phantom = phantom.take(phantom.split == "test")
    boxes = [
        [(b.x0, b.y0, b.x1, b.y1) for b in truth(path, SIDE).boxes[:1]]
        for path in phantom.image_path
    ]
    label = np.array(["a" if boxed else "" for boxed in boxes], dtype=object)
    source = ImageSource(phantom.replace(label=label), ("a", "b", "c"), Preprocessing(SIDE))
    rows = np.arange(len(phantom))
    answers = predictions(source, rows, np.eye(3)[np.zeros(len(rows), int)])
    images = images_of(source, rows, lambda row, name: boxes[row])
    found = localisation.localisation(explain, images, answers, samples=200)
    assert (found["n"], found["level"]) == (8, 3)
    first = [i for i, boxed in enumerate(boxes) if boxed][:8]
    area = [(x1 - x0) * (y1 - y0) / SIDE**2 for ((x0, y0, x1, y1),) in (boxes[i] for i in first)]
    assert found["box_share"] == pytest.approx(np.mean(area))
    # Brute force, image by image.
    for method, result in (
        ("grad_cam", found),
        ("integrated_gradients", found["integrated_gradients"]),
    ):
        hits, mass = [], []
        for i in first:
            ((x0, y0, x1, y1),) = boxes[i]
            (large,) = explain(source[i]["image"][None], np.array([0]), method)
            y, x = np.unravel_index(large.argmax(), large.shape)
            hits.append(x0 <= x < x1 and y0 <= y < y1)
            mass.append(large[y0:y1, x0:x1].sum() / large.sum())
        assert result["pointing_game"] == pytest.approx(np.mean(hits))
        assert result["mass_in_box"] == pytest.approx(np.mean(mass), abs=1e-5)
        low, high = result["ci95"]["mass_in_box"]
        assert low < np.mean(mass) < high


def test_several_findings_of_an_image_have_boxes_of_their_own(explain, radiographs):
    """The model sees something bright in the spot, and something dark around it."""
    rows = np.arange(2)
    findings = np.array([[1, 1, 0], [np.nan, 1, 0]], np.float32)
    answers = dataclasses.replace(
        predictions(radiographs, rows, np.full((2, 3), 0.5)), findings=findings
    )
    spots = {0: (0, 0, 32, 32), 1: (32, 0, 64, 32)}  # See `radiograph`.

    def boxes(row, name):
        return [spots[row]] if name == "a" else [(64, 64, 128, 128)]

    found = localisation.localisation(
        explain, images_of(radiographs, rows, boxes), answers, samples=0
    )
    assert found["n"] == 3  # Both of the first image; of the second it is not known for "a".
    assert found["n_patients"] == 2
    assert found["box_share"] == pytest.approx((1 / 16 + 1 / 4 + 1 / 4) / 3)
    assert [
        e.boxes
        for e in localisation.examples(explain, images_of(radiographs, rows, boxes), answers)
    ] == [((0, 0, 32, 32),), ((64, 64, 128, 128),)]


def test_maps_that_do_not_depend_on_the_model_are_found_out(model, radiographs):
    """This encoder has no parameters, so random heads change the sign at most."""
    explain = Explainer(*model, level=3, batch_size=3)
    rows = np.arange(4)
    answers = predictions(radiographs, rows, np.eye(3)[[0, 1, 2, 0]])
    images = images_of(radiographs, rows, lambda row, name: [(0, 0, 9, 9)])
    found = localisation.localisation(explain, images, answers, samples=0)["randomisation"]
    assert found["heads"] == pytest.approx(found["all"])
    same = explain.randomised(heads_only=True)
    assert same._variables["params"].keys() == explain._variables["params"].keys()
    maps = np.random.default_rng(0).random((3, 8, 8))
    assert localisation._similarity(maps, maps) == pytest.approx(1.0)
    assert localisation._similarity(maps, -maps) == pytest.approx(-1.0)
    assert np.isnan(localisation._similarity(maps, np.zeros_like(maps)))
