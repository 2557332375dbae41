"""A training run is steady: after its first steps and evaluations nothing is compiled again."""

import jax.monitoring
import numpy as np
import pytest

from data_pipeline.decode import Preprocessing
from data_pipeline.loader import ImageSource, training_batches
from data_pipeline.manifest import Records
from infantxray.models import ENCODERS, create_encoder
from infantxray.models.encoders import resnet
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one import training
from infantxray.stage_one.objectives import OBJECTIVES, ObjectiveSettings
from infantxray.stage_two.inference import Predictor
from infantxray.stage_two.loss import LossSettings, make_task
from infantxray.training import loop, writers
from infantxray.training.augment import Augmentation

CLASSES = ("mass", "normal")


class Grey(ImageSource):
    """Images of one grey level each, without files."""

    def _decode(self, row):
        return np.full((32, 32), row, np.uint8)


@pytest.fixture
def compiled():
    """Seconds of each compilation."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("stage", ["one", "two"])
def test_nothing_is_compiled_after_the_first_evaluation(tmp_path, compiled, monkeypatch, stage):
    monkeypatch.setattr(writers, "create_writer", lambda folder: writers.SilentLog())
    stages = tuple(resnet.Stage(f"conv{n}", 1, 8, 2) for n in range(2, 6))
    monkeypatch.setitem(ENCODERS, "tiny", lambda **options: resnet.ResNet(stages=stages, **options))
    how = Preprocessing(image_size=32)
    labels = [CLASSES[i % 2] for i in range(20)]
    records = Records.create([f"{i}.png" for i in range(20)], source="s", label=labels)
    source = Grey(records, CLASSES, how)
    spec = ModelSpec("tiny", "float32", how, CLASSES)
    counts = []

    def hook(moment):
        counts.append(len(compiled))
        return {}

    if stage == "one":
        objective = OBJECTIVES["l1"](
            create_encoder("tiny"), np.dtype("float32"), ObjectiveSettings(image_size=32)
        )
        task = training.make_task(
            objective, source, Augmentation(), batch_size=8, num_threads=1, seed=0
        )
    else:
        predictor = Predictor(spec, batch_size=8, num_threads=1)

        def validate(variables):
            predictor(variables, source)
            return {"loss": 1.0}

        task = make_task(spec, LossSettings(), Augmentation(), source.labels, validate)
    loop.fit(
        task,
        training_batches(source, 8, seed=0, num_threads=1),
        loop.LoopSettings(
            12, 8, log_every_steps=1, eval_every_steps=3, checkpoint_every_steps=3, best_metric=None
        ),
        str(tmp_path),
        hooks=[hook],
    )
    assert len(counts) == 13
    assert counts[1] > 0
    assert counts[-1] == counts[5], "something was compiled after step 4"
