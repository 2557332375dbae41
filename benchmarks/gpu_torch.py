"""PyTorch's step, which `gpu.py` measures beside this project's."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator

from gpu_steps import AGE_WEIGHT, CLASSES, LEARNING_RATE, Job, Size, seconds_a_step


def torch_device(tiny: bool) -> str:
    """ "cuda", for trying things "cpu", or empty: nothing to measure."""
    if not importlib.util.find_spec("torch"):
        return ""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu" if tiny else ""


@contextlib.contextmanager
def taking_turns(folder: str) -> Iterator[Callable[[], None]]:
    """Yields a function that waits until no other process compiles or measures."""
    with open(f"{folder}/turn", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # compiling, side by side

        def wait() -> None:
            fcntl.flock(lock, fcntl.LOCK_UN)
            fcntl.flock(lock, fcntl.LOCK_EX)

        yield wait


def time_torch(job: Job, size: Size, device: str, folder: str) -> dict:
    """PyTorch's step, eager and compiled. Compiles beside others, then measures alone."""
    import torch
    from reference_networks import create_reference, reference_body
    from torch import nn
    from training_step import make_grey, torch_decoder

    torch.manual_seed(0)
    network = create_reference(job.encoder).train()
    make_grey(network)
    network.to(device, memory_format=torch.channels_last)
    side = size.image
    image = torch.randn(size.batch, 1, side, side, device=device)
    image = image.to(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (size.batch,), device=device)
    age = torch.randn(size.batch, device=device)
    # Built once: a module that is made within a step cannot be compiled with it.
    body = reference_body(network, job.encoder)
    with torch.no_grad():
        features = body(image[:2]).shape[1]
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
            latent = body(image)
            if job.stage == "one":
                return (heads(latent) - image).abs().mean()
            pooled = latent.mean((2, 3))
            logits, predicted = heads["condition"](pooled), heads["age"](pooled)[:, 0]
        entropy = nn.functional.cross_entropy(logits.float(), label)
        return entropy + AGE_WEIGHT * ((predicted.float() - age) ** 2).mean()

    def step(function):
        optimizer.zero_grad(set_to_none=True)
        function(image, label, age).backward()
        optimizer.step()
        return torch.cuda.synchronize if device == "cuda" else lambda: None

    compiled, result = torch.compile(loss_of), {}
    with taking_turns(folder) as wait:
        start = time.perf_counter()
        # Memory may be short while others compile; then this network compiles in its turn.
        with contextlib.suppress(torch.OutOfMemoryError):
            step(compiled)()
            result["first_s"] = time.perf_counter() - start
        if device == "cuda":
            torch.cuda.empty_cache()
        wait()
        torch.backends.cudnn.benchmark = True  # chosen while nothing else runs
        for name, function in (("compiled", compiled), ("eager", loss_of)):
            step(function)()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            result[f"{name}_ms"] = 1e3 * seconds_a_step(functools.partial(step, function), size)
            if device == "cuda":
                result[f"{name}_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result
