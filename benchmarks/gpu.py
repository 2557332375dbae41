"""Training speed on one GPU: every encoder, both stages, beside PyTorch; each form alone.

From the repository's root, within nine minutes on an H100 or H200, compilation included:

    python benchmarks/gpu.py
    python benchmarks/gpu.py --each-form --out=benchmarks/results/gpu_forms.md

The second command measures each computation form alone instead of PyTorch.

A step is forward, backward and AdamW on a resident batch of grey images, in bfloat16 with float32
parameters and without augmentation. All programs are compiled first, in parallel processes, and
stored; then they are timed one after another. PyTorch runs the reference networks with
channels_last, autocast and fused AdamW, eager and by torch.compile, where it is installed with
CUDA: a process for each network, which compiles beside others and measures alone. What does not
fit into `--seconds` is listed as not measured. `--size=tiny` tries everything on a CPU, and

    python benchmarks/gpu.py --size=small --forms=cpu --out=benchmarks/results/gpu_small_on_cpu.md

gives the same tables from one.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import datetime
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
from collections.abc import Iterable, Iterator

import gpu_steps
import gpu_torch
from gpu_steps import ROOT, SIZES, Job, Size, all_jobs

# What a copy within the GPU's memory reached, bytes read and written.
BYTES_PER_SECOND = {"H100": 3.0e12, "H200": 4.3e12}
TORCH_AT_ONCE = 8  # networks that PyTorch compiles side by side: each holds its whole step


def work(arguments: argparse.Namespace, size: Size) -> None:
    """The work of a child process; every result is one line of JSON."""
    kind, folder = arguments.worker, arguments.cache
    if kind == "fed":
        print(json.dumps(gpu_steps.time_fed(size, arguments.forms)))
        return
    for text in arguments.jobs:
        job = Job.read(text)
        try:
            if kind == "compile":
                result = gpu_steps.compile_to_file(job, size, arguments.forms, folder)
            elif kind == "time":
                result = gpu_steps.time_job(job, size, folder)
            else:
                device = gpu_torch.torch_device(arguments.size == "tiny")
                result = gpu_torch.time_torch(job, size, device, folder)
        except Exception as error:  # the others are still worth measuring
            result = {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:120]}
        print(json.dumps({"job": text, **result}), flush=True)
        gc.collect()


class Processes:
    """Child processes of this file, until the time is up."""

    def __init__(self, arguments: argparse.Namespace, folder: str):
        self._arguments, self.folder = arguments, folder
        self._deadline = time.monotonic() + arguments.seconds

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def environment(self, flags: str = "") -> dict[str, str]:
        return os.environ | {
            "JAX_COMPILATION_CACHE_DIR": f"{self.folder}/xla",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            "TORCHINDUCTOR_CACHE_DIR": f"{self.folder}/inductor",
        }

    def run(self, worker: str, jobs: list[Job] = (), share: float = 1.0) -> Iterator[dict]:
        """The results that a child completes in this share of the time left."""
        command = [sys.executable, __file__, "--worker", worker, "--size", self._arguments.size]
        command += ["--forms", self._arguments.forms, "--cache", self.folder]
        command += ["--jobs", *map(str, jobs)]
        flags = {dict(job.changed).get("flags", "") for job in jobs} if worker == "compile" else {}
        environment = self.environment(" ".join(gpu_steps.FLAGS.get(name, "") for name in flags))
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

    def together(self, worker: str, jobs: list[Job], at_once: int, share: float) -> list[dict]:
        """One child for each job, some at once."""
        end = time.monotonic() + share * self.left()

        def one(job: Job) -> list[dict]:
            left = max(0.0, end - time.monotonic()) / max(self.left(), 1e-9)
            return list(self.run(worker, [job], share=left))

        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            return [result for results in pool.map(one, jobs) for result in results]

    def first_update(self, size: Size, workdir: str, share: float) -> dict:
        """Seconds from the start of `main.py` to the end of its first update."""
        encoder = first_encoder(size)
        command = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}"]
        command += ["--config=configs/finetune.py", f"--config.encoder={encoder}"]
        command += [f"--config.data.image_size={size.image}", f"--config.batch_size={size.batch}"]
        command += [f"--config.dtype={size.dtype}", "--config.log_every_steps=1"]
        history = pathlib.Path(workdir, "history.jsonl")
        start = time.perf_counter()
        end = start + share * self.left()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command, env=self.environment(), cwd=ROOT, stdout=output, stderr=output
            )
            try:
                while time.perf_counter() < end and process.poll() is None:
                    if history.exists() and '"train/loss"' in history.read_text(encoding="utf-8"):
                        return {"encoder": encoder, "seconds": time.perf_counter() - start}
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            reason = (output.read().strip().splitlines() or ["no output"])[-1]
            return {"error": reason[-120:] if time.perf_counter() < end else "no time left"}


def first_encoder(size: Size) -> str:
    return "resnet50" if "resnet50" in size.encoders else size.encoders[0]


def measure(arguments: argparse.Namespace, size: Size, folder: str) -> dict:
    """All results, by part."""
    from infantxray.models.forms import FORMS

    children = Processes(arguments, folder)
    jobs = all_jobs(size, FORMS[arguments.forms], each_form=arguments.each_form)
    plain = [job for job in jobs if not job.changed]
    device = "" if arguments.each_form else gpu_torch.torch_device(arguments.size == "tiny")
    results: dict = collections.defaultdict(dict)

    def keep(part: str, found: Iterable[dict]) -> list[Job]:
        """Stores results by job and returns the jobs that succeeded."""
        for result in found:
            results[part][result.pop("job")] = result
        print(f"{children.left():.0f} s left after: {part}", file=sys.stderr, flush=True)
        return [Job.read(text) for text, r in results[part].items() if "error" not in r]

    for temperature in () if arguments.each_form else ("cold", "warm"):
        workdir = f"{folder}/{temperature}"
        results["first"][temperature] = children.first_update(size, workdir, share=0.3)
    cores = len(os.sched_getaffinity(0))
    results["at_once"] = min(cores, len(jobs))
    ready = keep("compile", children.together("compile", jobs, results["at_once"], 0.5))
    if ready:
        keep("here", children.run("time", [job for job in jobs if job in ready], share=0.6))
    if not arguments.each_form:
        results["fed"] = next(children.run("fed", share=0.3))
    if device:
        order = sorted(plain, key=lambda job: job.stage == "one")
        keep("torch", children.together("torch", order, min(cores, TORCH_AT_ONCE), 0.95))
    results["device"] = device
    return results


def describe_device() -> str:
    """Describes the GPU from a separate process, because this one must not hold its memory."""
    code = "import jax; d, = jax.devices()[:1]; print(d.platform, '|', d.device_kind)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip().splitlines()[-1] if found.stdout.strip() else found.stderr[-200:]


def page(results: dict, size: Size, arguments: argparse.Namespace, device: str) -> str:
    """The results as Markdown."""
    here, torch = results["here"], results["torch"]

    def number(table: dict, job: Job, key: str, form: str = ",.1f") -> str:
        value = table.get(str(job), {}).get(key)
        return "" if value is None else format(value, form)

    backend, _, kind = device.partition(" | ")
    shown = [a for a in sys.argv[1:] if not a.startswith(("--out", "--json", "--cache"))]
    lines = [
        "# Training speed on one GPU" if backend != "cpu" else "# Training speed, tried on a CPU",
        "",
        f"`python benchmarks/gpu.py {' '.join(shown)}`".replace(" `", "`")
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
    rates: dict[str, list[float]] = {"two": [], "one": []}
    order = [Job(encoder, stage) for stage in ("two", "one") for encoder in size.encoders]
    for job in order:
        row = here.get(str(job), {})
        ms = row.get("ms")
        bytes_moved = results["compile"].get(str(job), {}).get("bytes", 0)
        floor = bytes_moved / arguments.bytes_per_second * 1e3
        times = torch.get(str(job), {})
        others = [times[key] for key in ("eager_ms", "compiled_ms") if key in times]
        if ms and others:
            rates[job.stage].append(ms / min(others))
        lines.append(
            f"| {job.encoder} | {job.stage} | {number(here, job, 'ms')} "
            f"| {format(size.batch / ms * 1e3, ',.0f') if ms else ''} "
            f"| {format(floor / ms, '.2f') if ms else ''} "
            f"| {number(results['compile'], job, 'mib', ',.0f')} "
            f"| {number(results['compile'], job, 'compile_s', '.0f')} "
            f"| {number(torch, job, 'eager_ms')} | {number(torch, job, 'compiled_ms')} "
            f"| {number(torch, job, 'compiled_mib', ',.0f')} "
            f"| {format(ms / min(others), '.2f') if ms and others else ''} |"
        )
    for stage, found in rates.items():
        if found:
            mean = statistics.geometric_mean(found)
            lines += ["", f"Stage {stage}, here / best PyTorch, geometric mean: {mean:.2f}."]
    if any(Job.read(text).changed for text in here):
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
            f"- From the start of `main.py` to the end of its first update, {temperature}: {what}"
        )
    fed = results["fed"]
    if "error" in fed:
        lines.append(f"- Fed from the decoded cache: not measured, {fed['error']}")
    elif fed:
        lines.append(
            f"- {fed['encoder']}, stage two: {fed['fed_ms']:.2f} ms fed from the decoded cache, "
            f"{fed['resident_ms']:.2f} ms resident: fed / resident speed "
            f"{fed['resident_ms'] / fed['fed_ms']:.3f}"
        )
    if results["device"] != "cuda" and not arguments.each_form:
        lines.append("- PyTorch with CUDA is not there: torch.compile was not measured")
    for part in ("compile", "here", "torch"):
        for text, result in results[part].items():
            if "error" in result:
                lines.append(f"- Not measured ({part}): {text}: {result['error']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.md")
    parser.add_argument("--seconds", type=float, default=500, help="for everything")
    parser.add_argument("--bytes-per-second", type=float, help="of the memory; default: by device")
    parser.add_argument("--forms", default="gpu", help="a key of infantxray.models.forms.FORMS")
    parser.add_argument("--each-form", action="store_true", help="each form alone, no PyTorch")
    parser.add_argument("--cache", help="folder of compiled programs; default: a temporary one")
    parser.add_argument("--json", type=pathlib.Path, help="writes the raw results there, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.worker:
        work(arguments, size)
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(arguments.cache or folder)
        cache.mkdir(parents=True, exist_ok=True)
        results = measure(arguments, size, str(cache))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    device = describe_device()
    if not arguments.bytes_per_second:
        known = [rate for name, rate in BYTES_PER_SECOND.items() if name in device]
        arguments.bytes_per_second = (known or [BYTES_PER_SECOND["H100"]])[0]
    text = page(results, size, arguments, device)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
