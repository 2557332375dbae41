"""Forms are chosen by the backend or by hand, and no network's numbers depend on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_encoders import SMALL

from infantxray.models import Decoder
from infantxray.models.encoders import hrnet
from infantxray.models.forms import FORMS, Forms, current_forms, use_forms


def test_backend_decides_unless_told(monkeypatch):
    assert current_forms() == FORMS["cpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert current_forms() == FORMS["gpu"]
    with use_forms("lax"):
        with use_forms(Forms(fusion="nested")) as inner:
            assert current_forms() is inner
        assert current_forms() == FORMS["lax"]
    assert current_forms() == FORMS["gpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "new")
    assert current_forms() == FORMS["lax"]


def test_unknown_forms_list_the_known():
    with pytest.raises(ValueError, match=r"'cuda'.*cpu, gpu, tpu"), use_forms("cuda"):
        pass


def loss_and_gradients(model, variables, image, forms):
    """Against fixed random weights, in training mode, with the updated statistics."""

    def loss(params):
        outputs, updates = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        rng = np.random.default_rng(1)
        terms = [(y * rng.normal(size=y.shape)).mean() for y in jax.tree.leaves(outputs)]
        return sum(terms), updates

    with use_forms(forms):
        program = str(jax.make_jaxpr(loss)(variables["params"]))
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]), program


def random_variables(model, image):
    """Random throughout: with residual scales at zero a wrong branch would not show."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.5, 0.3, leaf.shape).astype(np.float32), shapes)


# One branch of each width, two exchanges: every path of the fusion.
HRNET = hrnet.HRNet(
    stages=(hrnet.Stage(1, (4, 8)), hrnet.Stage(1, (4, 8, 8)), hrnet.Stage(1, (4, 8, 8, 8))),
    units=0,
)
CHANGES = {
    "fusion": (HRNET, Forms(fusion="nested")),
    "statistics": (SMALL["densenet"], Forms(statistics="shared")),
    "late": (Decoder(), Forms(doubling="late")),
    "transposed": (Decoder(), Forms(doubling="transposed")),
    "shufflenet": (SMALL["shufflenet"], FORMS["gpu"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_numbers_do_not_depend_on_forms(name):
    model, forms = CHANGES[name]
    shape = (2, 2, 2, 16) if isinstance(model, Decoder) else (2, 64, 64, 1)
    image = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    variables = random_variables(model, image)
    actual, program = loss_and_gradients(model, variables, image, forms)
    expected, plain = loss_and_gradients(model, variables, image, Forms())
    assert program != plain
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale)
