"""Models with perturbed weights."""

import jax
import numpy as np

from data_pipeline.decode import Preprocessing
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference
from infantxray.stage_two.answers import Member

SIZE = 64
CLASSES = ("normal", "intussusception", "constipation")


def make_member(encoder, **changes):
    """A model away from its initial values, which hide wrong branches."""
    values = {"age_mean_months": 18.0, "age_std_months": 10.0} | changes
    spec = ModelSpec(encoder, "float32", Preprocessing(image_size=SIZE), CLASSES, **values)
    model = inference.build_model(spec)
    variables = inference.init_variables(model, SIZE, jax.random.key(0))
    rng = np.random.default_rng(0)
    return Member(
        spec,
        jax.tree.map(
            lambda x: np.asarray(x) + np.abs(rng.normal(0, 0.05, x.shape)).astype(np.float32),
            variables,
        ),
    )
