"""Plan of a study: which runs it has, which of them are finished, and what each needs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from infantxray.models import ENCODERS
from infantxray.stage_two.self_training import Teaching, num_labelled
from infantxray.studies import commands
from infantxray.studies.commands import Settings, Task
from infantxray.studies.recipes import Variant
from infantxray.training import checkpoints

RANDOM = "random weights"
REFERENCE = "full"  # The variant that the others are compared with, if there is one.
_RECORDS = ("study_run.json", "cell.json")  # The second in studies of earlier versions.


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study compares: `config.study`, and the settings that its runs share.

    Attributes:
      variants: by name, in order; the last one, or `full`, is what the others are compared with.
      encoders: names of networks.
      seeds: of stage two.
      pretrain_seeds: of stage one, which take turns; empty = `seeds`.
      label_fractions: of the training patients, for stage two.
      label_draw: which patients keep labels: `"shared"` or `"seed"`.
      pretrain_data: the images of stage one.
      frozen: whether frozen encoders are probed.
      dtype: dtype of the computation.
      labels: `"single"` or `"multi"`, of probes and stage two.
      data: settings of both stages, nested; `data.train` is that of stage two.
      pretrain, finetune: settings of the stages, nested.
    """

    variants: Mapping[str, Variant]
    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    label_fractions: tuple[float, ...]
    pretrain_data: str
    data: Mapping[str, Any]
    pretrain: Mapping[str, Any]
    finetune: Mapping[str, Any]
    pretrain_seeds: tuple[int, ...] = ()
    label_draw: str = "shared"
    frozen: bool = True
    dtype: str = "float32"
    labels: str = "single"

    def check(self) -> None:
        """Raises `UserError` if a selection is not valid."""
        selections = {
            "encoders": self.encoders,
            "variants": tuple(self.variants),
            "seeds": self.seeds,
            "label_fractions": self.label_fractions,
        }
        for name, values in selections.items():
            if not values or len(set(values)) < len(values):
                raise UserError(f"config.study.{name} is {values}; name at least one, each once")
        if len(set(self.pretrain_seeds)) < len(self.pretrain_seeds):
            raise UserError(f"config.study.pretrain_seeds is {self.pretrain_seeds}; name each once")
        for name in self.encoders:
            if name not in ENCODERS:
                raise UserError(
                    f"config.study.encoders names {name!r}; there are {', '.join(ENCODERS)}"
                )
        for fraction in self.label_fractions:
            if not 0 < fraction <= 1:
                raise UserError(
                    f"config.study.label_fractions holds {fraction}; each must be above 0, at "
                    "most 1"
                )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      index: its number in the plan, which `study.cells` selects by.
      task: `pretrain`, `probe` or `finetune`.
      encoder: name of the network.
      name: the objective of its encoder (stage one and probes), or the variant (stage two).
      label_fraction: share of the training patients.
      seed: seed of the run.
      folder: its workdir.
      settings: nested, as in the configuration file of its task.
      command: the command that executes it.
      needs: numbers of the runs that must be finished first.
    """

    index: int
    task: str
    encoder: str
    name: str
    label_fraction: float
    seed: int
    folder: str
    settings: Settings
    command: list[str]
    needs: tuple[int, ...]

    @property
    def title(self) -> str:
        fraction = f", {self.label_fraction:.0%} of labels" if self.label_fraction < 1 else ""
        return f"{self.task} {self.encoder}, {self.name}{fraction}, seed {self.seed}"

    def is_finished(self) -> bool:
        """Whether the files are there that a run writes at its end."""
        if self.task == "probe":
            return os.path.exists(os.path.join(self.folder, "metrics.json"))
        written = ["metrics.json", "report.html"] if self.task == "finetune" else []
        return all(
            os.path.exists(os.path.join(self.folder, name)) for name in written
        ) and checkpoints.is_finished(self.folder)

    def read_record(self) -> dict[str, Any]:
        """`seconds` of work so far, and whether it `finished`; empty before the first attempt."""
        for name in _RECORDS:
            try:
                with open(os.path.join(self.folder, name), encoding="utf-8") as file:
                    return dict(json.load(file))
            except (OSError, ValueError):
                continue
        return {}

    def write_record(self, record: Mapping[str, Any]) -> None:
        write_json(os.path.join(self.folder, _RECORDS[0]), record)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a study.

    Attributes:
      runs: stage one first, then the probes of its encoders, then stage two.
      same_as: variants without runs, `{name: the variant that it is identical to}`.
    """

    runs: tuple[Run, ...]
    same_as: Mapping[str, str]


def make_plan(
    study: Study, folder: str, tasks: Mapping[str, Task], *, has_ages: bool = True
) -> Plan:
    """Plans all runs of a study.

    Args:
      study: what it compares.
      folder: its workdir.
      tasks: `pretrain`, `probe` and `finetune`.
      has_ages: whether a training image of stage two has an age. Without ages, variants that differ
        in their age settings alone are identical, and the last of them has runs.

    Raises:
      UserError: a selection or a setting is not valid.
    """
    study.check()
    planner = _Planner(study, folder, tasks)
    same_as = {} if has_ages else planner.identical_without_ages()
    chosen = {name: v for name, v in study.variants.items() if name not in same_as}
    first = study.pretrain_seeds or study.seeds
    for encoder in study.encoders:
        for variant in chosen.values():
            for seed in first:
                if variant.pretrained:
                    planner.stage_one(encoder, variant.pretrain, seed)
    if study.frozen:
        for encoder in study.encoders:
            for seed in first:
                planner.probe(encoder, None, seed)
                for variant in chosen.values():
                    if variant.pretrained:
                        planner.probe(encoder, variant.pretrain, seed)
    for fraction in study.label_fractions:
        for encoder in study.encoders:
            for name, variant in chosen.items():
                for i, seed in enumerate(study.seeds):
                    start = first[i % len(first)]
                    planner.stage_two(encoder, name, variant, fraction, seed, start)
    return Plan(tuple(planner.runs), same_as)


class _Planner:
    """Adds runs to a plan, each once."""

    def __init__(self, study: Study, folder: str, tasks: Mapping[str, Task]):
        self.runs: list[Run] = []
        self._study = study
        self._folder = folder
        self._tasks = tasks
        self._by_folder: dict[str, Run] = {}

    def identical_without_ages(self) -> dict[str, str]:
        """Variants that are identical without ages, `{name: the last that is identical to it}`."""
        age_settings = {
            key: value
            for key, value in self._tasks["finetune"].defaults.items()
            if key.startswith("age_")
        }
        names: dict[str, str] = {}
        found: dict[str, str] = {}
        last_first = list(self._study.variants)[::-1]
        for name in sorted(last_first, key=lambda name: name != REFERENCE):
            variant = self._study.variants[name]
            changes = {**variant.finetune, **age_settings}
            key = repr(
                (
                    variant.pretrained,
                    sorted(commands.flatten(variant.pretrain).items()) * variant.pretrained,
                    sorted(commands.flatten(changes).items()),
                )
            )
            if key in names:
                found[name] = names[key]
            names.setdefault(key, name)
        return found

    def stage_one(self, encoder: str, overrides: Mapping[str, Any], seed: int) -> Run:
        data = {"train": self._study.pretrain_data, "validation": "", "test": ""}
        base = {**self._study.pretrain, "data": {**self._study.data, **data}}
        name = self._stage_one_name(overrides)
        return self._add("pretrain", encoder, name, seed, [base, overrides])

    def probe(self, encoder: str, overrides: Mapping[str, Any] | None, seed: int) -> Run:
        base: Settings = {
            "batch_size": self._study.finetune["batch_size"],
            "data": {**self._study.data, "label_fraction": 1.0},
        }
        needs = []
        name = RANDOM
        if overrides is not None:
            needs = [self.stage_one(encoder, overrides, seed)]
            name = needs[0].name
            base["pretrained"] = needs[0].folder
        return self._add("probe", encoder, name, seed, [base], needs)

    def stage_two(
        self, encoder: str, name: str, variant: Variant, fraction: float, seed: int, start: int
    ) -> Run:
        """`start` is the seed of the stage one whose encoder it starts from."""
        base: Settings = {
            **self._study.finetune,
            "data": {**self._study.data, "label_fraction": float(fraction)},
        }
        if self._study.label_draw == "seed":
            base["data"]["label_seed"] = int(seed)
        needs = []
        if variant.pretrained:
            needs = [self.stage_one(encoder, variant.pretrain, start)]
            base["pretrained"] = needs[0].folder
        overrides = [base, variant.finetune]
        if "self_training" in variant.finetune:
            compose = self._tasks["finetune"].compose
            overrides.append(_equally_many_images(name, compose(base), compose(*overrides)))
        return self._add("finetune", encoder, name, seed, overrides, needs, fraction)

    def _stage_one_name(self, overrides: Mapping[str, Any]) -> str:
        changed = commands.flatten(overrides)
        objective = changed.pop("objective", self._study.pretrain["objective"])
        return "-".join([objective, *(f"{k}={v}" for k, v in changed.items())])

    def _add(
        self,
        task: str,
        encoder: str,
        name: str,
        seed: int,
        overrides: Sequence[Mapping[str, Any]],
        needs: Sequence[Run] = (),
        fraction: float = 1.0,
    ) -> Run:
        # A plus sign joins places in config.encoders.
        place = name.replace(" ", "-").replace("+", "-and-")
        parts = [task, encoder, place, f"seed{seed}"]
        if task == "finetune":
            parts.insert(3, f"fraction{fraction:g}")
        folder = os.path.join(self._folder, *parts)
        if folder in self._by_folder:
            return self._by_folder[folder]
        common = {"encoder": encoder, "seed": int(seed), "dtype": self._study.dtype}
        if task != "pretrain":
            common["labels"] = self._study.labels
        settings = self._tasks[task].compose(common, *overrides)
        run = Run(
            index=len(self.runs),
            task=task,
            encoder=encoder,
            name=name,
            label_fraction=float(fraction),
            seed=int(seed),
            folder=folder,
            settings=settings,
            command=self._tasks[task].command(settings, folder),
            needs=tuple(run.index for run in needs),
        )
        self.runs.append(run)
        self._by_folder[folder] = run
        return run


def _equally_many_images(name: str, usual: Settings, changed: Settings) -> dict[str, int]:
    """The steps with which a variant of self-training draws as many images as the other variants.

    The images that teachers draw count too.
    """
    spare = _drawn_by_teachers(usual) - _drawn_by_teachers(changed)
    if not spare or not (changed["train_steps"] or changed["train_epochs"]):
        return {}  # A length by the data counts the images of teachers.
    if not changed["train_steps"]:
        raise UserError(
            f"the variant {name} has other teachers and must draw as many images as the others; "
            "its study needs config.finetune.train_steps, not train_epochs"
        )
    steps = changed["train_steps"] + round(spare / changed["batch_size"])
    if steps < 1:
        raise UserError(
            f"the teachers of the variant {name} alone draw more images than the others; raise "
            "config.finetune.train_steps"
        )
    return {"train_steps": steps}


def _drawn_by_teachers(settings: Settings) -> int:
    labelled = num_labelled(settings["batch_size"], settings["labelled_fraction"])
    return Teaching(**settings["self_training"]).images_drawn(labelled)


def select(runs: Sequence[Run], text: str) -> list[Run]:
    """The runs named by numbers and ranges, such as `0-11,20`; all for an empty text.

    Raises:
      UserError: the text has another form, or names a run that the plan lacks.
    """
    if not text:
        return list(runs)
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"config.study.cells is {text!r}; expected numbers such as 0-11,20")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= len(runs):
            raise UserError(
                f"config.study.cells names {part.strip()}; the plan has runs 0 to {len(runs) - 1}"
            )
        chosen.update(numbers)
    return [runs[i] for i in sorted(chosen)]


def describe(plan: Plan, finished: set[int]) -> str:
    """The plan as a table for the terminal."""
    rows = [("run", "task", "encoder", "what", "labels", "seed", "needs", "state")]
    for run in plan.runs:
        rows.append(
            (
                str(run.index),
                run.task,
                run.encoder,
                run.name,
                f"{run.label_fraction:.0%}",
                str(run.seed),
                ",".join(map(str, run.needs)),
                "finished" if run.index in finished else "to run",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [
        f"{name} is identical to {other}, as no training image has an age: not run"
        for name, other in plan.same_as.items()
    ]
    return "\n".join(lines)
