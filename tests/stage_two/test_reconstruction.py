"""The reconstruction error of stage one: its threshold, and what `predict` says of it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_encoder import small_encoder

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.commands import predict
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one import restoring
from infantxray.stage_two import reconstruction as module
from infantxray.stage_two.answers import Answerer, Member
from infantxray.stage_two.trust import Trust

HOW = Preprocessing(image_size=32)
SPEC = ModelSpec("small", "float32", HOW, ("a", "b"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A workdir whose stage one is a narrow autoencoder with random weights."""
    stage_one = ModelSpec("small", "float32", HOW, objective="l1")
    records = Records.create([f"{i}.png" for i in range(60)], source="s")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 32, 32), np.uint8)
    monkeypatch.setattr(ImageSource, "_decode", lambda self, row: pixels[row])
    monkeypatch.setattr(module.workdir, "read_config", lambda folder: {"pretrained": "one"})
    monkeypatch.setattr(module, "is_workdir", lambda place: place == "one")
    monkeypatch.setattr(
        module, "read_split", lambda path: types.SimpleNamespace(validation=records)
    )
    source = ImageSource(records, (), HOW)
    monkeypatch.setattr(module, "reader_of", lambda folder, spec: lambda records: source)
    with small_encoder():
        model = restoring.make_objective(stage_one).model
        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
        )
        variables = jax.tree.map(lambda x: rng.uniform(0, 0.3, x.shape).astype(np.float32), shapes)
        monkeypatch.setattr(module, "restore", lambda folder: (stage_one, variables, 1))
        yield tmp_path, pixels, variables, stage_one


def test_the_threshold_is_a_quantile_of_validation_errors(run, monkeypatch):
    folder, pixels, variables, stage_one = run
    with monkeypatch.context() as patch:  # The first of several processes stores it.
        patch.setattr(module.processes, "is_main", lambda: False)
        module.for_workdir(str(folder), SPEC, batch_size=16)
    assert not (folder / module.FILE).exists()
    found = module.for_workdir(str(folder), SPEC, batch_size=16)
    rebuilt = jax.jit(restoring.reconstruct_function(stage_one))(variables, pixels[..., None])
    errors = np.abs(np.asarray(rebuilt) - pixels[..., None] / 255).mean((1, 2, 3))
    assert found.threshold == pytest.approx(np.quantile(errors, 0.99), rel=1e-5)
    monkeypatch.delattr(module, "reader_of")  # The threshold is stored.
    again = module.for_workdir(str(folder), SPEC)
    assert again.threshold == found.threshold
    np.testing.assert_allclose(again(pixels[:4, ..., None]), errors[:4], rtol=1e-4)

    member = Member(SPEC, None, Trust())
    answerer = Answerer([member], reconstruction=dataclasses.replace(found, threshold=errors[0]))
    outputs = {
        "features": np.zeros((2, 8), np.float32),
        "probabilities": np.full((2, 2), 0.5, np.float32),
        "reconstruction": errors[0] + np.array([0, 0.01]),
    }
    records = Records.create(["a.png", "b.png"], source="s")
    answers = answerer.answers([outputs], records, np.array([-1, -1]))
    rows = predict.row_values(answers, records, answerer)
    assert [row["badly_rebuilt"] for row in rows] == [False, True]
    assert "rebuilt badly" in rows[1]["note"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "simsiam"}, "one is not an autoencoder of the same images"),
        ({"preprocessing": Preprocessing(image_size=64)}, "64 px"),
        (None, "did not start from a stage-one workdir"),
    ],
)
def test_other_stage_ones_are_refused(run, monkeypatch, change, words):
    folder, _, variables, stage_one = run
    if change is None:
        monkeypatch.setattr(module, "is_workdir", lambda place: False)
    else:
        other = dataclasses.replace(stage_one, **change)
        monkeypatch.setattr(module, "restore", lambda folder: (other, variables, 1))
    with pytest.raises(UserError, match=words):
        module.for_workdir(str(folder), SPEC)
