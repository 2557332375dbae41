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
from infantxray.evaluation import saliency as gradcam
from infantxray.evaluation.metrics import Predictions
from infantxray.models.diagnosis import DiagnosisModel

SIDE = 128  # Four by four cells.


class Brightness(nn.Module):
    """An encoder whose last map is how bright and how dark each 32 x 32 pixels are."""

    @nn.compact
    def __call__(self, image, *, train):
        del train
        mean = nn.avg_pool(image, (32, 32), (32, 32))
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
    maps = np.asarray(gradcam.saliency(*model, images, jnp.array([0, 0])))
    assert maps.shape == (2, 4, 4)
    for found, (row, column) in zip(maps, [(0, 3), (2, 1)], strict=True):
        expected = np.zeros((4, 4))
        expected[row, column] = 1.0
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_image_is_explained_for_its_own_class(model):
    images = np.stack([radiograph(1, 2, ground=160, spot=20)] * 2)
    bright, dark = np.asarray(gradcam.saliency(*model, images, jnp.array([0, 1])))
    assert dark[1, 2] == pytest.approx(1.0)
    assert dark.sum() == pytest.approx(1.0)
    assert bright[1, 2] == 0.0
    assert bright.sum() == pytest.approx(15.0)


def test_nothing_that_speaks_for_a_class_is_all_zero_and_not_nan(model):
    maps = np.asarray(gradcam.saliency(*model, radiograph(0, 0)[None], jnp.array([2])))
    np.testing.assert_array_equal(maps, 0.0)


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


def test_one_example_a_class_the_surest_right_or_wrong(model, radiographs):
    rows = np.array([0, 1, 3, 4])  # Image 2 could not be read.
    probabilities = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]]
    records = radiographs.records.take(rows)
    found = gradcam.examples(
        *model, radiographs, predictions(radiographs, rows, probabilities), records
    )
    assert [(e.truth, e.predicted) for e in found] == [("a", "b"), ("b", "a")]
    assert [e.probability for e in found] == pytest.approx([0.7, 0.9])
    assert [example.box for example in found] == [None, None]
    for example, row in zip(found, (1, 3), strict=True):
        np.testing.assert_array_equal(example.image, radiograph(row % 4, row // 2)[..., 0])
        assert example.image.dtype == np.uint8
        assert example.saliency.shape == (SIDE, SIDE)
        assert example.saliency.min() >= 0.0
        assert example.saliency.max() <= 1.0
    # Image 3, predicted "something bright": where its spot is.
    spot = found[1].saliency[96:128, 32:64]
    assert spot.mean() > 0.6
    assert found[1].saliency.mean() < 0.15


def test_nothing_to_explain(model, radiographs):
    rows = np.array([4])
    records = radiographs.records.take(rows)
    assert (
        gradcam.examples(*model, radiographs, predictions(radiographs, rows, [[1, 0, 0]]), records)
        == []
    )
    no_classes = Predictions((), np.zeros((1, 0)), *[np.zeros(1)] * 4)
    assert gradcam.examples(*model, radiographs, no_classes, records) == []


def test_saliency_is_held_against_the_true_boxes(model):
    """Of a model that looks where it is bright, and of one that has nothing to look at."""
    phantom = open_phantom("infant:films=200")
    phantom = phantom.take(phantom.split == "test")
    boxes = [truth(path, SIDE).boxes for path in phantom.image_path]
    label = np.array(["a" if boxed else "" for boxed in boxes], dtype=object)
    source = ImageSource(phantom.replace(label=label), ("a", "b", "c"), Preprocessing(SIDE))
    rows = np.arange(len(phantom))
    answers = predictions(source, rows, np.eye(3)[np.zeros(len(rows), int)])
    found = gradcam.localisation(*model, source, answers, source.records)
    assert found["n"] == 8
    (shown,) = gradcam.examples(*model, source, answers, source.records)
    assert (shown.box,) in boxes
    first = [i for i, boxed in enumerate(boxes) if boxed][:8]
    area = [(b.x1 - b.x0) * (b.y1 - b.y0) / SIDE**2 for b in (boxes[i][0] for i in first)]
    assert found["box_share"] == pytest.approx(np.mean(area))
    # Brute force, image by image.
    hits, mass = [], []
    for i in first:
        image = source[i]["image"]
        small = np.asarray(gradcam.saliency(*model, image[None], jnp.array([0])))[0]
        large = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        large = np.clip(np.asarray(large), 0, 1)
        box = boxes[i][0]
        y, x = np.unravel_index(large.argmax(), large.shape)
        hits.append(box.x0 <= x < box.x1 and box.y0 <= y < box.y1)
        mass.append(large[box.y0 : box.y1, box.x0 : box.x1].sum() / large.sum())
    assert found["pointing_game"] == pytest.approx(np.mean(hits))
    assert found["mass_in_box"] == pytest.approx(np.mean(mass), abs=1e-5)


def test_images_without_boxes_are_not_judged(model, radiographs):
    rows = np.arange(4)
    answers = predictions(radiographs, rows, np.eye(3)[[0, 1, 2, 0]])
    assert (
        gradcam.localisation(*model, radiographs, answers, radiographs.records.take(rows)) is None
    )
