"""Random damage to every kind of file: noticed in one line or harmless, never silently different.

    python tests/drills/bitflips.py --count 200

One file of a finished run, of an unfinished run, of a stage one or of a cache is changed at a time:
a bit is flipped, the file is cut short, or it is deleted. Then the command runs that would read it
next. Its outcome is one of

- noticed: an error of one line, exit code 2;
- same: the results are those of the undamaged files, with or without a warning;
- warned: a message names the file, and only what that file held differs;
- SILENT: results differ, and nothing was said;
- TRACEBACK: it ended with a traceback, or with more than a line.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import kill
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
              ("evaluate", *scored, "--config.bootstrap_samples=20"), kill.pages)
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
              kill.pages)
    )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="JSON file for the results")
    options = parser.parse_args()
    harness.load()
    rng = random.Random(options.seed)
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad = []
    with tempfile.TemporaryDirectory() as temporary:
        stages = scenes(Path(temporary))
        for i in range(options.count):
            scene = stages[i % len(stages)]
            by_kind: dict[str, list[Path]] = collections.defaultdict(list)
            for path in scene.files:
                by_kind[kind(path, scene.root)].append(path)
            # Every kind of file equally often.
            name = rng.choice(sorted(by_kind))
            outcome, details = scene(rng.choice(by_kind[name]), rng)
            table[f"{scene.name}: {name}"][outcome] += 1
            print(f"{i + 1:4d} {outcome:9s} {scene.name}: {name}: {details}", flush=True)
            if outcome in _BAD:
                bad.append(f"{scene.name}: {name}: {outcome}: {details}")
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
