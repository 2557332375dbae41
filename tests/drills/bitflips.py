"""Random damage to every kind of file: noticed in one line or harmless, never silently different.

    python tests/drills/bitflips.py --count 1000              # what reads the files
    python tests/drills/bitflips.py --count 40 --commands     # whole commands, half a minute each

One file of a finished or unfinished run, of a cache or of an export is changed at a time: a bit is
flipped, the file is cut short, or it is deleted. Then everything that reads such files reads them,
or the command runs that would read them next. The outcome is one of

- noticed: an error of one line, exit code 2;
- same: the results are those of the undamaged files, with or without a warning;
- warned: a message names the file, and only what that file held differs;
- SILENT: results differ, and nothing was said;
- TRACEBACK: it ended with a traceback, or with more than a line.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pickle
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
from harness import FINETUNE, PRETRAIN

_BAD = ("SILENT", "TRACEBACK")
_IGNORED = ("run.lock", ".compile_cache")


def damage(path: Path, rng: random.Random) -> str:
    """Changes a file, and says how."""
    content = path.read_bytes()
    how = rng.choice(["flip", "flip", "flip", "flip", "cut", "delete"]) if content else "delete"
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        path.write_bytes(bytes(changed))
        how = f"flip of bit {bit} of byte {at}"
    return how


def kind(path: Path, root: Path) -> str:
    """The name of a file, with what differs between runs replaced."""
    text = path.relative_to(root).as_posix()
    text = re.sub(r"^(figures|tables)/.*", r"\1/*", text)
    text = re.sub(r"/[0-9a-f]{32}$", "/*", text)
    text = re.sub(r"checkpoints/\d+/", "checkpoints/N/", text)
    text = re.sub(r"shard-[0-9a-f]+", "shard-*", text)
    text = re.sub(r"^(images/)\w+", r"\1*", re.sub(r"tfevents.*", "tfevents.*", text))
    return re.sub(r"/[0-9a-f]{8,}/", "/*/", text)


class Scene:
    """Files that a command reads, and the results that it has without damage.

    Args:
      name: of the scene.
      root: of the files that are damaged.
      flags: task and settings of the command.
      compare: the results of its workdir.
      within: the command works in this folder of `root`; otherwise in a new one.
    """

    def __init__(self, name, root: Path, flags, compare, *, within: str = ""):
        self.name, self.root, self._flags = name, root, flags
        self._compare, self._within = compare, within
        self.files = [
            path for path in sorted(root.rglob("*"))
            if path.is_file() and path.name not in _IGNORED
        ]  # fmt: skip
        self._saved = root.with_name(root.name + "-saved")
        shutil.copytree(root, self._saved)
        code, output, self._expected = self._run()
        assert code == 0, output

    def _run(self) -> tuple[int, str, dict[str, Any]]:
        workdir = self.root / self._within if self._within else self.root.with_name("out")
        if not self._within:
            shutil.rmtree(workdir, ignore_errors=True)
        command = harness.run(*self._flags, workdir=workdir)
        code = command.poll()
        assert code is not None
        results = harness.call(self._compare, workdir) if code == 0 else {}
        self._temporary = harness.leftovers(workdir) if workdir.exists() else []
        return code, command.output(), results

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self._saved, self.root)

    def __call__(self, path: Path, rng: random.Random) -> tuple[str, str]:
        """Damages a file and runs the command; returns the outcome, and details."""
        self.restore()
        how = damage(path, rng)
        try:
            code, output, results = self._run()
        except AssertionError as error:  # The results could not be read.
            return "SILENT", f"{how}: {str(error)[-300:]}"
        said = output.strip().splitlines()
        if code != 0:
            wrong = harness.one_line(output) or (f"exit code {code}" if code != 2 else "")
            wrong = wrong or (f"left {self._temporary[0]}" if self._temporary else "")
            return ("TRACEBACK" if wrong else "noticed"), f"{how}: {wrong or said[-1]}"
        keys = harness.differences(self._expected, results)
        if not keys:
            return "same", how
        named = [line for line in said if path.name in line]
        return ("warned" if named else "SILENT"), f"{how}: {keys[:5]}; {named[:1]}"


def scenes(place: Path) -> list[Scene]:
    """Finished and unfinished runs of both stages, their evaluation, and a cache."""
    found = []
    for name, (task, *flags) in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        whole = place / name
        harness.finish(task, *flags, workdir=whole)
    model = place / "finetune"
    scored = (f"--config.checkpoint={model}", "--config.batch_size=8")
    found.append(
        Scene("finished run, evaluate", model,
              ("evaluate", *scored, "--config.bootstrap_samples=20"), harness.results)
    )  # fmt: skip
    stage_one = place / "pretrain"
    found.append(
        Scene("stage one, start of stage two", stage_one,
              (*FINETUNE, f"--config.pretrained={stage_one}"), harness.fingerprint)
    )  # fmt: skip
    for name, (task, *flags) in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        unfinished = place / f"unfinished-{name}" / "run"
        command = harness.Command(task, *flags, workdir=unfinished)
        while not (unfinished / "checkpoints" / "8").exists() and command.poll() is None:
            pass
        command.send(9)
        command.poll(block=True)
        found.append(
            Scene(f"unfinished {name}, resume", unfinished.parent, (task, *flags),
                  harness.fingerprint, within="run")
        )  # fmt: skip
    harness.call(harness.write_images, place / "images")
    images = f"folder:{place / 'images'}"
    prepare = ("prepare", f"--config.data.train={images}", "--config.data.image_size=32")
    cache = place / "cache"
    harness.finish(*prepare, "--config.images_per_shard=40", workdir=cache)
    found.append(
        Scene("cache, predict", cache,
              ("predict", *scored, f"--config.data.test={images}", f"--config.data.cache={cache}"),
              harness.results)
    )  # fmt: skip
    return found


def readings(folder: Path) -> dict[str, Any]:
    """Everything that commands read from a run, by what reads it."""
    import jax

    from data_pipeline import files
    from data_pipeline.splits import read_split
    from infantxray.evaluation.predictions import read_predictions
    from infantxray.runs import workdir
    from infantxray.runs.model_spec import ModelSpec
    from infantxray.stage_two import inference, trust
    from infantxray.training import checkpoints, partial_restore, writers

    run = str(folder)
    found: dict[str, Any] = {"settings": workdir.read_config(run)}
    spec = ModelSpec.read(run)
    found["model"] = repr(spec)
    split = read_split(folder / "split.csv")
    found["split"] = [
        str(getattr(part, name).tolist())
        for part in (split.train, split.validation, split.test)
        for name in ("image_path", "patient_id", "label", "age_months", "split")
    ]
    found["progress"] = checkpoints.read_progress(run)
    found["best"] = checkpoints.best_step(run)
    abstract = jax.eval_shape(
        lambda: inference.init_variables(inference.build_model(spec), 32, jax.random.key(0))
    )
    # A run that is killed while it removes an older checkpoint leaves a part of that.
    for step in {found["best"], checkpoints.checkpoint_steps(run)[-1]}:
        restored, _ = partial_restore.restore_variables(run, step, abstract)
        leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
        found[f"step {step}"] = [(str(name), leaf.tobytes()) for name, leaf in leaves]
    judge = trust.Trust.read(run)
    if judge is not None:  # What is deleted is fitted again by the command that needs it.
        found["trust"] = pickle.dumps(dataclasses.asdict(judge))
    found["history"] = writers.read_history(str(folder / "history.jsonl"))
    writers.purge_events(run, 10_000)
    found["events"] = sorted(harness._events(folder))
    if (folder / files.CHECKSUMS).exists() or (folder / "metrics.json").exists():
        files.verify_checksums(folder)
        found["metrics"] = files.read_json(folder / "metrics.json")
        predictions, paths = read_predictions(folder / "predictions.csv")
        found["predictions"] = (paths, predictions.probabilities.tobytes())
    return found


def cached(folder: Path) -> dict[str, Any]:
    """The images of a cache, or of their files where it has them no longer."""
    from data_pipeline.cache import find_cache
    from data_pipeline.decode import Preprocessing, load_image

    cache = find_cache(folder, Preprocessing(32))
    values = {}
    for path in sorted((folder.parent / "images").iterdir())[:60]:
        image = None if cache is None else cache.get(str(path))
        image = load_image(str(path), Preprocessing(32)) if image is None else image
        values[str(path)] = image.tobytes()
    return values


def exported(folder: Path) -> dict[str, Any]:
    """What programs read from an export; files for people and browsers have their checksums."""
    import contextlib
    import io
    import runpy

    from data_pipeline.errors import UserError
    from data_pipeline.files import verify_checksums
    from infantxray.models.torch_weights import import_encoder

    read = ("model.onnx", "model.json", "encoder.safetensors")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    verify_checksums(folder, [name for name in files if name not in read])
    image = next((folder.parent / "images").glob("*.png"))
    printed = io.StringIO()
    arguments, sys.argv = sys.argv, ["use.py", str(image)]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(folder / "use.py"), run_name="__main__")
    except SystemExit as end:
        raise UserError(str(end)) from None
    finally:
        sys.argv = arguments
    weights = import_encoder(harness.ENCODER, folder / "encoder.safetensors")
    return {"use.py": printed.getvalue(), "encoder": pickle.dumps(weights)}


def damage_readers(place: Path, count: int, seed: int, only: str) -> list[tuple[str, str, str]]:
    """Damages files and reads them, in one process; call it through `call`.

    Returns:
      For each trial the kind of file, the outcome, and details.
    """
    import logging

    from data_pipeline.errors import UserError
    from infantxray.runs import accidents

    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    for name in ("data_pipeline", "infantxray"):
        logging.getLogger(name).addHandler(Listener())
        logging.getLogger(name).propagate = False
    rng = random.Random(seed)
    scenes = [("finished run", place / "finetune", readings),
              ("unfinished run", place / "unfinished", readings),
              ("cache", place / "cache", cached),
              ("export", place / "export", exported)]  # fmt: skip
    scenes = [scene for scene in scenes if not only or scene[0] == only]
    found = []
    expected = {}
    for name, root, read in scenes:
        shutil.copytree(root, root.with_name(root.name + "-saved"))
        expected[name] = read(root)
    for trial in range(count):
        name, root, read = scenes[trial % len(scenes)]
        shutil.rmtree(root)
        shutil.copytree(root.with_name(root.name + "-saved"), root)
        kinds: dict[str, list[Path]] = collections.defaultdict(list)
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.name not in _IGNORED:
                kinds[kind(path, root)].append(path)
        chosen = rng.choice(sorted(kinds))  # Every kind of file equally often.
        path = rng.choice(kinds[chosen])
        how = damage(path, rng)
        said.clear()
        try:
            values = read(root)
        except UserError as error:
            outcome, details = "noticed", str(error)
        except Exception as error:
            ordinary = accidents._os_error(error) is not None
            outcome, details = "noticed" if ordinary else "TRACEBACK", repr(error)
        else:
            keys = harness.differences(expected[name], values)
            if how == "delete" and path.name == "trust.json":
                keys.remove("trust")
            name_of = path.name.partition(".tfevents")[0]
            warned = any(name_of in message for message in said)
            outcome = "same" if not keys else "warned" if warned else "SILENT"
            details = f"{keys[:4]}; {said[:1]}" if keys else ""
        found.append((f"{name}: {chosen}", outcome, f"{how}: {details}"[:400]))
    return found


def for_readers(place: Path) -> None:
    """A finished and an unfinished run, a cache and an export."""
    task, *flags = FINETUNE
    harness.finish(task, *flags, workdir=place / "finetune")
    command = harness.Command(task, *flags, workdir=place / "unfinished")
    while not (place / "unfinished/checkpoints/8").exists() and command.poll() is None:
        pass
    command.send(9)
    command.poll(block=True)
    harness.call(harness.write_images, place / "images")
    harness.finish("prepare", f"--config.data.train=folder:{place / 'images'}",
                   "--config.data.image_size=32", "--config.images_per_shard=40",
                   workdir=place / "cache")  # fmt: skip
    harness.finish("export", f"--config.checkpoint={place / 'finetune'}", workdir=place / "export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="JSON file for the results")
    parser.add_argument("--only", default="", help="files of one kind, such as export")
    parser.add_argument("--commands", action="store_true", help="run whole commands")
    options = parser.parse_args()
    harness.load()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    trials = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if options.commands:
            rng = random.Random(options.seed)
            stages = scenes(place)
            for i in range(options.count):
                scene = stages[i % len(stages)]
                by_kind: dict[str, list[Path]] = collections.defaultdict(list)
                for path in scene.files:
                    by_kind[kind(path, scene.root)].append(path)
                name = rng.choice(sorted(by_kind))  # Every kind of file equally often.
                outcome, details = scene(rng.choice(by_kind[name]), rng)
                trials.append((f"{scene.name}: {name}", outcome, details))
                print(f"{i + 1:4d} {outcome:9s} {scene.name}: {name}: {details}", flush=True)
        else:
            for_readers(place)
            trials = harness.call(damage_readers, place, options.count, options.seed, options.only)
    for name, outcome, _ in trials:
        table[name][outcome] += 1
    bad = [trial for trial in trials if trial[1] in _BAD]
    for name in sorted(table):
        print(f"{name}: {', '.join(f'{n} {what}' for what, n in sorted(table[name].items()))}")
    print(*bad, sep="\n")
    results = {"count": options.count, "table": table, "bad": bad}
    totals: collections.Counter[str] = collections.Counter()
    for counter in table.values():
        totals.update(counter)
    print(dict(totals))
    if options.output:
        harness.write_results(options.output, results)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
