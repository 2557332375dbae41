"""Training speed on one GPU: every encoder, both stages, beside PyTorch; each form alone.

From the repository's root, within eight minutes on an H100, compilation included:

    python benchmarks/gpu.py

A step is forward, backward and AdamW on a resident batch of grey images, in bfloat16 with float32
parameters and without augmentation. All programs are compiled first, in parallel processes, into a
cache; then they are timed one after another. What does not fit into `--seconds` is listed as not
measured. PyTorch runs the reference networks with channels_last, autocast and fused AdamW, eager
and by torch.compile, where it is installed with CUDA. `--size=tiny` tries everything on a CPU, and

    python benchmarks/gpu.py --size=small --forms=cpu --out=benchmarks/results/gpu_small_on_cpu.md

gives the same tables from one.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import datetime
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

CLASSES, AGE_WEIGHT, LEARNING_RATE = 11, 0.8, 1e-3
# What compiles longest comes first.
ENCODERS = ("hrnet_w32", "densenet121", "shufflenet", "mobilenet_v2", "xception", "resnext50")
ENCODERS += ("resnet50", "vgg19")
TORCH_AT_ONCE = 4  # networks that PyTorch compiles side by side: each holds its whole step


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
    ("shufflenet", "two"): {"grouped_1x1": ("lax", "batched", "dense")},
    ("resnext50", "two"): {"grouped_3x3": ("lax", "batched", "dense")},
    ("resnet50", "two"): {"stem": ("lax", "space_to_depth"), "max_pool": ("lax", "shifts")},
    ("hrnet_w32", "two"): {"fusion": ("repeat", "nested")},
    ("densenet121", "two"): {"statistics": ("each", "shared")},
    ("vgg19", "two"): {"max_pool": ("lax", "shifts")},
    ("resnet50", "one"): {"doubling": ("early", "late", "transposed")},
}


def all_jobs(size: Size, forms) -> list[Job]:
    jobs = [Job(encoder, stage) for encoder in size.encoders for stage in ("two", "one")]
    for (encoder, stage), fields in ABLATIONS.items():
        if encoder in size.encoders:
            for field, values in fields.items():
                if forms.convolution == "products" and field.startswith(("grouped", "stem")):
                    continue  # These products come first.
                others = [value for value in values if value != getattr(forms, field)]
                jobs += [Job(encoder, stage, ((field, value),)) for value in others]
    return jobs


# ---- This project's step ----


def make_step(job: Job, size: Size, forms: str, *, fed: bool = False):
    """A step to be jitted, `state, batch -> state, loss`, the model, and a batch.

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
    chosen = dataclasses.replace(FORMS[forms], **dict(job.changed))
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

    def step(state, batch):
        with use_forms(chosen):
            params, batch_stats, moments = state
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, batch_stats), grads = gradient(params, batch_stats, batch)
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), batch_stats, moments), value

    rng = np.random.default_rng(0)
    shape = (size.batch, size.image, size.image, 1)
    image = rng.integers(0, 256, shape, np.uint8) if fed else rng.normal(size=shape)
    batch = {
        "image": image if fed else image.astype(np.float32),
        "label": rng.integers(0, CLASSES, size.batch).astype(np.int32),
        "age_months": rng.normal(size=size.batch).astype(np.float32),
    }
    return jax.jit(step, donate_argnums=0), model, optimizer, batch


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

    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == np.int32:
            return np.zeros(leaf.shape, np.int32)
        return 0.02 + np.abs(0.02 * rng.standard_normal(leaf.shape, np.float32))

    return jax.device_put(jax.tree.map(draw, abstract))


def compile_job(job: Job, size: Size, forms: str, *, fed: bool = False):
    """The compiled step, its seconds of compilation, an abstract state and a batch."""
    step, model, optimizer, batch = make_step(job, size, forms, fed=fed)
    state = abstract_state(model, optimizer, size)
    start = time.perf_counter()
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


def time_job(job: Job, size: Size, forms: str) -> dict:
    import jax

    compiled, load_s, abstract, batch = compile_job(job, size, forms)
    state, batch = random_state(abstract), jax.device_put(batch)

    def step():
        nonlocal state
        state, loss = compiled(state, batch)
        return loss.block_until_ready

    memory = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "ms": 1e3 * seconds_a_step(step, size),
        "mib": needed / 2**20,
        "bytes": compiled.cost_analysis().get("bytes accessed", 0.0),
        "load_s": load_s,
    }


def time_fed(size: Size, forms: str) -> dict:
    """The same step on batches of the training loader, from a decoded cache, and resident."""
    import jax
    import numpy as np
    from PIL import Image

    from data_pipeline.cache import create_folder, write_shard
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


def first_step(size: Size, forms: str) -> dict:
    """From the start of a process to the end of the first update, with real initial weights."""
    import jax
    import jax.numpy as jnp

    from infantxray.models.initialisation import initialise

    job = Job("resnet50" if "resnet50" in size.encoders else size.encoders[0], "two")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = pool.submit(compile_job, job, size, forms)
        _, model, optimizer, batch = make_step(job, size, forms)
        image = jnp.zeros((1, size.image, size.image, 1))
        variables = initialise(functools.partial(model.init, train=False), jax.random.key(0), image)
        params = variables["params"]
        state = params, variables.get("batch_stats", {}), optimizer.init(params)
        compiled = compiling.result()[0]
    _, loss = compiled(state, jax.device_put(batch))
    loss.block_until_ready()
    return {"encoder": job.encoder}


# ---- PyTorch's step ----


def torch_device(tiny: bool) -> str:
    """ "cuda", for trying things "cpu", or empty: nothing to measure."""
    if not importlib.util.find_spec("torch"):
        return ""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu" if tiny else ""


def time_torch(job: Job, size: Size, compiled: bool, device: str) -> dict:
    import torch
    from reference_networks import create_reference, reference_map
    from torch import nn
    from training_step import make_grey, torch_decoder

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    network = create_reference(job.encoder).train()
    make_grey(network)
    network.to(device, memory_format=torch.channels_last)
    side = size.image
    image = torch.randn(size.batch, 1, side, side, device=device)
    image = image.to(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (size.batch,), device=device)
    age = torch.randn(size.batch, device=device)
    with torch.no_grad():
        features = reference_map(network, job.encoder, image[:2]).shape[1]
    if job.stage == "one":
        heads = torch_decoder(features)
    else:
        hidden = nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 1))
        heads = nn.ModuleDict({"condition": nn.Linear(features, CLASSES), "age": hidden})
    heads.to(device, memory_format=torch.channels_last)
    last = ("fc.", "classifier.", "output.")
    weights = [p for n, p in network.named_parameters() if not n.startswith(last)]
    optimizer = torch.optim.AdamW([*weights, *heads.parameters()], LEARNING_RATE, fused=True)

    def loss_of(image, label, age):
        with torch.autocast(device, torch.bfloat16):
            latent = reference_map(network, job.encoder, image)
            if job.stage == "one":
                return (heads(latent) - image).abs().mean()
            pooled = latent.mean((2, 3))
            logits, predicted = heads["condition"](pooled), heads["age"](pooled)[:, 0]
        entropy = nn.functional.cross_entropy(logits.float(), label)
        return entropy + AGE_WEIGHT * ((predicted.float() - age) ** 2).mean()

    function = torch.compile(loss_of) if compiled else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        function(image, label, age).backward()
        optimizer.step()
        return torch.cuda.synchronize if device == "cuda" else lambda: None

    start = time.perf_counter()
    step()()
    first = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = {"ms": 1e3 * seconds_a_step(step, size), "first_s": first}
    if device == "cuda":
        result["mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


# ---- Processes ----


def work(arguments: argparse.Namespace, size: Size) -> None:
    """The work of a child process; every result is one line of JSON."""
    kind = arguments.worker
    if kind in ("first", "fed"):
        print(json.dumps((first_step if kind == "first" else time_fed)(size, arguments.forms)))
        return
    for text in arguments.jobs:
        job = Job.read(text)
        try:
            if kind == "compile":
                result = {"compile_s": compile_job(job, size, arguments.forms)[1]}
            elif kind == "time":
                result = time_job(job, size, arguments.forms)
            else:
                device = torch_device(arguments.size == "tiny")
                result = time_torch(job, size, kind == "torch-compile", device)
        except Exception as error:  # the others are still worth measuring
            result = {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:120]}
        print(json.dumps({"job": text, **result}), flush=True)
        gc.collect()
        if kind.startswith("torch"):
            import torch

            torch.compiler.reset()
            torch.cuda.empty_cache()


class Processes:
    """Child processes of this file, until the time is up."""

    def __init__(self, arguments: argparse.Namespace, cache: str):
        self._arguments, self._cache = arguments, cache
        self._deadline = time.monotonic() + arguments.seconds

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def run(self, worker: str, jobs: list[Job] = (), share: float = 1.0) -> Iterator[dict]:
        """The results that a child completes in this share of the time left."""
        command = [sys.executable, __file__, "--worker", worker, "--size", self._arguments.size]
        command += ["--forms", self._arguments.forms, "--jobs", *map(str, jobs)]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": f"{self._cache}/xla",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TORCHINDUCTOR_CACHE_DIR": f"{self._cache}/inductor",
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        }
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            try:
                code = subprocess.run(
                    command,
                    env=environment,
                    stdout=output,
                    stderr=errors,
                    timeout=max(0.0, share * self.left()),
                ).returncode
                reason = f"exit code {code}"
            except subprocess.TimeoutExpired:
                code, reason = 0, "no time left"
            output.seek(0)
            done = set()
            for line in output:
                if line.startswith("{") and line.endswith("}\n"):
                    result = json.loads(line)
                    done.add(result.get("job"))
                    yield result
            if code:
                errors.seek(0)
                reason = (errors.read().strip().splitlines() or [reason])[-1][:120]
            missing = [str(job) for job in jobs if str(job) not in done]
            if not jobs and not done:
                yield {"error": reason}
            yield from ({"job": job, "error": reason} for job in missing)

    def together(self, tasks: list[tuple[str, Job]], at_once: int, share: float) -> list[dict]:
        """One child for each task, some at once."""
        end = time.monotonic() + share * self.left()

        def one(task: tuple[str, Job]) -> list[dict]:
            left = max(0.0, end - time.monotonic()) / max(self.left(), 1e-9)
            return list(self.run(task[0], [task[1]], share=left))

        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            return [result for results in pool.map(one, tasks) for result in results]


def measure(arguments: argparse.Namespace, size: Size, cache: str) -> dict:
    """All results, by part."""
    from infantxray.models.forms import FORMS

    children = Processes(arguments, cache)
    jobs = all_jobs(size, FORMS[arguments.forms])
    plain = [job for job in jobs if not job.changed]
    device = torch_device(arguments.size == "tiny")
    results: dict = collections.defaultdict(dict)

    def keep(part: str, found: Iterable[dict]) -> list[Job]:
        """Stores results by job and returns the jobs that succeeded."""
        for result in found:
            results[part][result.pop("job")] = result
        return [Job.read(text) for text, r in results[part].items() if "error" not in r]

    for temperature in ("cold", "warm"):
        start = time.perf_counter()
        (first,) = children.run("first", share=0.3)
        results["first"][temperature] = first | {"seconds": time.perf_counter() - start}
    cores = len(os.sched_getaffinity(0))
    results["at_once"] = min(cores, len(jobs))
    compiling = children.together([("compile", job) for job in jobs], results["at_once"], 0.5)
    ready = keep("compile", compiling)
    keep("here", children.run("time", [job for job in jobs if job in ready], share=0.6))
    if device:
        keep("eager", children.run("torch-eager", plain, share=0.4))
    if all(importlib.util.find_spec(package) for package in ("grain", "pydicom")):
        results["fed"] = next(children.run("fed", share=0.3))
    else:
        results["fed"] = {"error": "grain or pydicom is not installed"}
    if device == "cuda":
        order = sorted(plain, key=lambda job: (job.stage == "one", -plain.index(job)))
        tasks = [("torch-compile", job) for job in order]
        ready = keep("torch-first", children.together(tasks, TORCH_AT_ONCE, 0.7))
        keep("compiled", children.run("torch-compile", ready, share=0.9))
    results["torch"] = device
    return results


def describe_device() -> str:
    """Describes the GPU from a separate process, because this one must not hold its memory."""
    code = "import jax; d, = jax.devices()[:1]; print(d.platform, '|', d.device_kind)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip().splitlines()[-1] if found.stdout.strip() else found.stderr[-200:]


def page(results: dict, size: Size, arguments: argparse.Namespace, device: str) -> str:
    """The results as Markdown."""
    here, eager, compiled = (results[part] for part in ("here", "eager", "compiled"))

    def number(table: dict, job: Job, key: str, form: str = ",.1f") -> str:
        value = table.get(str(job), {}).get(key)
        return "" if value is None else format(value, form)

    backend, _, kind = device.partition(" | ")
    lines = [
        "# Training speed on one GPU" if backend != "cpu" else "# Training speed, tried on a CPU",
        "",
        f"`python benchmarks/gpu.py {' '.join(sys.argv[1:])}`".replace(" `", "`")
        + f", {datetime.date.today()}. {kind}, "
        f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} CPU cores. {size.image} px, one channel, batch "
        f"{size.batch}, {size.dtype} compute with float32 parameters; forward, backward, AdamW on "
        f"a resident batch; median of {size.turns} times {size.steps} steps. Floor: XLA's count of "
        f"bytes over {arguments.bytes_per_second / 1e12:g} TB/s. Compiling: {results['at_once']} "
        "programs at once. Memory: planned by XLA; PyTorch's peak of allocated tensors.",
        "",
        "| network | stage | here, ms | images/s | floor / here | MiB | compiling, s | "
        "PyTorch eager, ms | compiled, ms | MiB | here / best PyTorch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = [Job(encoder, stage) for stage in ("two", "one") for encoder in size.encoders]
    for job in order:
        row = here.get(str(job), {})
        ms = row.get("ms")
        floor = row.get("bytes", 0) / arguments.bytes_per_second * 1e3
        others = [t[str(job)]["ms"] for t in (eager, compiled) if "ms" in t.get(str(job), {})]
        lines.append(
            f"| {job.encoder} | {job.stage} | {number(here, job, 'ms')} "
            f"| {format(size.batch / ms * 1e3, ',.0f') if ms else ''} "
            f"| {format(floor / ms, '.2f') if ms else ''} | {number(here, job, 'mib', ',.0f')} "
            f"| {number(results['compile'], job, 'compile_s', '.0f')} "
            f"| {number(eager, job, 'ms')} | {number(compiled, job, 'ms')} "
            f"| {number(compiled if str(job) in compiled else eager, job, 'mib', ',.0f')} "
            f"| {format(ms / min(others), '.2f') if ms and others else ''} |"
        )
    lines += ["", "Each form alone, everything else by default:", ""]
    lines += ["| network | stage | form | ms | default, ms |", "|---|---|---|---|---|"]
    for text in here:
        job = Job.read(text)
        if job.changed:
            form = ", ".join(f"{name}={value}" for name, value in job.changed)
            default = number(here, Job(job.encoder, job.stage), "ms", ",.2f")
            lines.append(
                f"| {job.encoder} | {job.stage} | {form} | {number(here, job, 'ms', ',.2f')} "
                f"| {default} |"
            )
    lines.append("")
    for temperature, first in results["first"].items():
        what = first.get("error") or f"{first['seconds']:.1f} s ({first['encoder']}, stage two)"
        lines.append(
            f"- From the start of a process to the end of its first update, {temperature}: {what}"
        )
    fed = results["fed"]
    lines.append(
        f"- Fed from the decoded cache: not measured, {fed['error']}"
        if "error" in fed
        else f"- {fed['encoder']}, stage two: {fed['fed_ms']:.2f} ms fed from the decoded cache, "
        f"{fed['resident_ms']:.2f} ms resident: fed / resident speed "
        f"{fed['resident_ms'] / fed['fed_ms']:.3f}"
    )
    if results["torch"] != "cuda":
        lines.append("- PyTorch with CUDA is not there: torch.compile was not measured")
    for part in ("compile", "here", "eager", "torch-first", "compiled"):
        for text, result in results[part].items():
            if "error" in result:
                lines.append(f"- Not measured ({part}): {text}: {result['error']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.md")
    parser.add_argument("--seconds", type=float, default=460, help="for everything")
    parser.add_argument("--bytes-per-second", type=float, default=3.0e12, help="of the memory")
    parser.add_argument("--forms", default="gpu", help="a key of infantxray.models.forms.FORMS")
    parser.add_argument("--cache", help="folder of compiled programs; empty: a new one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.worker:
        work(arguments, size)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, size, arguments.cache or folder)
    text = page(results, size, arguments, describe_device())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
