"""The steps of this project that `gpu.py` measures, with a resident batch and fed by the loader."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

CLASSES, AGE_WEIGHT, LEARNING_RATE = 11, 0.8, 1e-3
# What compiles longest comes first.
ENCODERS = ("hrnet_w32", "densenet121", "shufflenet", "mobilenet_v2", "xception", "resnext50")
ENCODERS += ("resnet50", "vgg19")
# Compiler flags that can be tried like a form: `flags=NAME`.
FLAGS = {
    "conv_fusion": "--xla_gpu_experimental_enable_conv_fusion=true",
    "no_graphs": "--xla_gpu_enable_command_buffer=",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    image: int
    batch: int
    steps: int
    turns: int
    encoders: tuple[str, ...]
    images: int  # in the decoded cache
    dtype: str = "bfloat16"


SIZES = {
    "full": Size(224, 128, 15, 3, ENCODERS, 4096),
    "small": Size(64, 16, 5, 3, ENCODERS, 256, "float32"),
    "tiny": Size(32, 4, 2, 1, ("vgg19",), 16, "float32"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training step: an encoder in a stage, and which forms differ from the default."""

    encoder: str
    stage: str
    changed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, text: str) -> Job:
        encoder, stage, *changed = text.split(",")
        return cls(encoder, stage, tuple(tuple(change.split("=")) for change in changed))

    def __str__(self) -> str:
        return ",".join([self.encoder, self.stage, *("=".join(c) for c in self.changed)])


# Each form alone, where it matters most. The default's own value is the plain job.
ABLATIONS = {
    ("shufflenet", "two"): {
        "grouped_1x1": ("lax", "dense"),  # "batched" takes seconds a step on an H200
        "pointwise": ("lax", "product"),
    },
    ("resnext50", "two"): {"grouped_3x3": ("lax", "batched", "dense")},
    ("resnet50", "two"): {
        "stem": ("lax", "space_to_depth"),
        "max_pool": ("lax", "shifts"),
        "pointwise": ("lax", "product"),
        "flags": ("", *FLAGS),
    },
    ("hrnet_w32", "two"): {"fusion": ("repeat", "nested"), "flags": ("", "no_graphs")},
    ("densenet121", "two"): {
        "statistics": ("each", "shared"),
        "pointwise": ("lax", "product"),
    },
    ("mobilenet_v2", "two"): {"pointwise": ("lax", "product")},
    ("vgg19", "two"): {"max_pool": ("lax", "shifts")},
    ("resnet50", "one"): {"doubling": ("early", "late", "transposed")},
}


# On CPUs products take precedence over the forms of single convolutions; flags are the GPU's.
CPU_FORMS = ("max_pool", "fusion", "doubling", "statistics")


def all_jobs(size: Size, forms, *, each_form: bool) -> list[Job]:
    """Each encoder in both stages; with `each_form` those of `ABLATIONS` and their changes."""
    if not each_form:
        return [Job(encoder, stage) for encoder in size.encoders for stage in ("two", "one")]
    jobs = []
    for (encoder, stage), fields in ABLATIONS.items():
        if encoder in size.encoders:
            jobs.append(Job(encoder, stage))
            for field, values in fields.items():
                if forms.convolution == "products" and field.startswith(
                    ("grouped", "stem", "point", "flags")
                ):
                    continue  # These products come first.
                others = [value for value in values if value != getattr(forms, field, "")]
                jobs += [Job(encoder, stage, ((field, value),)) for value in others]
    return jobs


# ---- This project's step ----


def make_step(job: Job, size: Size, forms: str, *, fed: bool = False):
    """A jitted step, `leaves, batch -> leaves, loss`, the abstract state and a batch.

    The state's leaves travel as a list, so a compiled step can be stored without its tree.

    With `fed` the batch is one of the loader's, uint8; otherwise normalised floats.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from infantxray.models import Decoder, create_encoder
    from infantxray.models.autoencoder import Autoencoder
    from infantxray.models.diagnosis import DiagnosisModel
    from infantxray.models.forms import FORMS, use_forms
    from infantxray.models.input_scale import IMAGENET

    dtype = jnp.dtype(size.dtype)
    encoder = create_encoder(job.encoder, dtype=dtype)
    if job.stage == "one":
        model = Autoencoder(encoder, Decoder(dtype=dtype))
    else:
        model = DiagnosisModel(encoder, num_classes=CLASSES, dtype=dtype)
    changed = {name: value for name, value in job.changed if name != "flags"}
    chosen = dataclasses.replace(FORMS[forms], **changed)
    optimizer = optax.adamw(LEARNING_RATE)

    def loss(params, batch_stats, batch):
        image = batch["image"]
        if fed:
            image = (image.astype(jnp.float32) / 255 - IMAGENET.mean) / IMAGENET.std
        variables = {"params": params, "batch_stats": batch_stats}
        output, updates = model.apply(variables, image, train=True, mutable=["batch_stats"])
        batch_stats = updates.get("batch_stats", {})
        if job.stage == "one":
            return jnp.abs(output.astype(jnp.float32) - image).mean(), batch_stats
        known = jnp.maximum(batch["label"], 0)
        entropy = optax.softmax_cross_entropy_with_integer_labels(output["logits"], known)
        age = jnp.nan_to_num(batch["age_months"])
        return (entropy + AGE_WEIGHT * (output["age"] - age) ** 2).mean(), batch_stats

    tree = jax.tree.structure(abstract_state(model, optimizer, size))

    def step(leaves, batch):
        with use_forms(chosen):
            params, batch_stats, moments = jax.tree.unflatten(tree, leaves)
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, batch_stats), grads = gradient(params, batch_stats, batch)
            updates, moments = optimizer.update(grads, moments, params)
            state = optax.apply_updates(params, updates), batch_stats, moments
            return jax.tree.leaves(state), value

    rng = np.random.default_rng(0)
    shape = (size.batch, size.image, size.image, 1)
    image = rng.integers(0, 256, shape, np.uint8) if fed else rng.normal(size=shape)
    batch = {
        "image": image if fed else image.astype(np.float32),
        "label": rng.integers(0, CLASSES, size.batch).astype(np.int32),
        "age_months": rng.normal(size=size.batch).astype(np.float32),
    }
    state = jax.tree.leaves(abstract_state(model, optimizer, size))
    return jax.jit(step, donate_argnums=0), state, batch


def abstract_state(model, optimizer, size: Size):
    import jax
    import jax.numpy as jnp

    image = jnp.zeros((1, size.image, size.image, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return params, batch_stats, jax.eval_shape(optimizer.init, params)


def random_state(abstract):
    """Small random numbers and, for variances and moments, positive ones: no program to compile."""
    import jax
    import numpy as np

    numbers = 0.02 + np.abs(0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32))

    def draw(leaf):
        if leaf.dtype == np.int32:
            return np.zeros(leaf.shape, np.int32)
        return np.resize(numbers, leaf.shape)

    return jax.device_put(jax.tree.map(draw, abstract))


def compile_job(job: Job, size: Size, forms: str, *, fed: bool = False):
    """The compiled step, its seconds of compilation, an abstract state and a batch."""
    start = time.perf_counter()
    step, state, batch = make_step(job, size, forms, fed=fed)
    compiled = step.lower(state, batch).compile()
    return compiled, time.perf_counter() - start, state, batch


def seconds_a_step(step: Callable[[], Callable[[], object]], size: Size) -> float:
    """Median over turns. `step` starts a step and returns what waits for its end."""
    for _ in range(2):
        step()()
    times = []
    for _ in range(size.turns):
        start = time.perf_counter()
        for _ in range(size.steps):
            wait = step()
        wait()
        times.append((time.perf_counter() - start) / size.steps)
    return statistics.median(times)


def compile_to_file(job: Job, size: Size, forms: str, folder: str) -> dict:
    """Compiles a step and stores the program and its inputs for `time_job`."""
    import jax
    from jax.experimental import serialize_executable

    if jax.default_backend() == "cpu":  # It cannot store a program that it has read from the cache.
        jax.config.update("jax_enable_compilation_cache", False)
    compiled, seconds, state, batch = compile_job(job, size, forms)
    memory = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    leaves = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(state)]
    program, *_ = serialize_executable.serialize(compiled)
    _program_file(folder, job).write_bytes(pickle.dumps((program, leaves, batch)))
    return {
        "compile_s": seconds,
        "mib": needed / 2**20,
        "bytes": compiled.cost_analysis().get("bytes accessed", 0.0),
    }


def _program_file(folder: str, job: Job) -> pathlib.Path:
    return pathlib.Path(folder, f"{job}.program")


def time_job(job: Job, size: Size, folder: str) -> dict:
    """Times a program of `compile_to_file`."""
    import jax
    from jax.experimental import serialize_executable

    start = time.perf_counter()
    program, leaves, batch = pickle.loads(_program_file(folder, job).read_bytes())
    values = [0] * len(leaves)
    trees = jax.tree.structure(((values, batch), {})), jax.tree.structure((values, 0))
    compiled = serialize_executable.deserialize_and_load(program, *trees)
    state = random_state([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    batch = jax.device_put(batch)
    load_s = time.perf_counter() - start

    def step():
        nonlocal state
        state, loss = compiled(state, batch)
        return loss.block_until_ready

    return {"ms": 1e3 * seconds_a_step(step, size), "load_s": load_s}


def time_fed(size: Size, forms: str) -> dict:
    """The same step on batches of the training loader, from a decoded cache, and resident."""
    import jax
    import numpy as np
    from PIL import Image

    from data_pipeline.cache_writing import create_folder, write_shard
    from data_pipeline.decode import Preprocessing
    from data_pipeline.loader import ImageSource, training_batches
    from data_pipeline.manifest import Records

    job = Job("resnet50" if "resnet50" in size.encoders else size.encoders[0], "two")
    compiled, _, abstract, batch = compile_job(job, size, forms, fed=True)
    state, resident = random_state(abstract), jax.device_put(batch)
    how = Preprocessing(size.image)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        paths = [f"{folder}/{n}.png" for n in range(size.images)]
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(f"{folder}/image.png")
        for path in paths:
            os.symlink("image.png", path)
        cache = create_folder(f"{folder}/cache", how)
        for at in range(0, len(paths), 512):
            write_shard(cache, paths[at : at + 512], how, "uint8")
        records = Records.create(paths, source="benchmark")
        source = ImageSource(records, (), how, cache=f"{folder}/cache")
        threads = min(8, os.cpu_count() or 1)
        loader = training_batches(source, size.batch, seed=0, num_threads=threads)

        def step(batch):
            nonlocal state
            state, loss = compiled(state, batch)
            return loss.block_until_ready

        def feed():
            batch = next(loader)
            return step(jax.device_put({key: batch[key] for key in resident}))

        return {
            "encoder": job.encoder,
            "resident_ms": 1e3 * seconds_a_step(lambda: step(resident), size),
            "fed_ms": 1e3 * seconds_a_step(feed, size),
        }
