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
    shapes = jax.eval_shape(lambda: inference.init_variables(model, SIZE, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def values_of(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(2 / np.prod(x.shape[:-1])) ** 0.5
        return (path[-1].key in ("scale", "var")) + 0.1 * np.abs(noise)

    return Member(spec, jax.tree_util.tree_map_with_path(values_of, shapes))
