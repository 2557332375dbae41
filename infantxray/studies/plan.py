"""Which runs a study consists of, which of them are done, and how long the others will take."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from infantxray.models import ENCODERS
from infantxray.runs import settings, workdir
from infantxray.stage_two.self_training import teachers_images
from infantxray.studies import commands
from infantxray.training import checkpoints

RANDOM = "random weights"
_RECORD = "cell.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      index: its number in the plan, which `study.cells` selects by.
      task: `pretrain`, `probe` or `finetune`.
      encoder: name of the network.
      name: what the encoder learned by (stage one and probes), or the variant (stage two).
      label_fraction: of the training patients.
      seed: of the run.
      folder: its workdir.
      config: its settings.
      command: that runs it.
      needs: numbers of the cells that must be finished first.
    """

    index: int
    task: str
    encoder: str
    name: str
    label_fraction: float
    seed: int
    folder: str
    config: ConfigDict
    command: list[str]
    needs: tuple[int, ...]

    @property
    def title(self) -> str:
        fraction = f", {self.label_fraction:.0%} of labels" if self.label_fraction < 1 else ""
        return f"{self.task} {self.encoder}, {self.name}{fraction}, seed {self.seed}"

    def is_finished(self) -> bool:
        """Whether it has come to its end, by the marks that every such run leaves."""
        if self.task == "probe":
            return os.path.exists(os.path.join(self.folder, "metrics.json"))
        written = ["metrics.json", "report.html"] if self.task == "finetune" else []
        return all(
            os.path.exists(os.path.join(self.folder, name)) for name in written
        ) and checkpoints.is_finished(self.folder)

    def read_record(self) -> dict:
        """`seconds` of work so far, in how many `attempts`; empty before the first."""
        try:
            with open(os.path.join(self.folder, _RECORD), encoding="utf-8") as file:
                return json.load(file)
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write_record(self, record: dict) -> None:
        with open(os.path.join(self.folder, _RECORD), "w", encoding="utf-8") as file:
            json.dump(record, file)


def make_plan(config, folder: str) -> list[Cell]:
    """All runs of a study: stage one first, then the probes of its encoders, then stage two.

    Raises:
      UserError: a selection or a setting cannot be meant.
    """
    study = config.study.copy_and_resolve_references()
    for name in ("encoders", "variants"):
        # "vgg19,resnet50" is understood as well as "('vgg19', 'resnet50')", and so is "vgg19,".
        parts = (part.strip() for value in study[name] for part in value.split(","))
        study[name] = tuple(part for part in parts if part)
    _check_selections(config, study)
    planner = _Planner(config, folder)
    chosen = {name: config.variants[name].to_dict() for name in study.variants}
    first = study.pretrain_seeds or study.seeds
    for encoder in study.encoders:
        for variant in chosen.values():
            for seed in first:
                if variant["pretrained"]:
                    planner.stage_one(encoder, variant["pretrain"], seed)
    if study.frozen:
        for encoder in study.encoders:
            for seed in first:
                planner.probe(encoder, None, seed)
                for variant in chosen.values():
                    if variant["pretrained"]:
                        planner.probe(encoder, variant["pretrain"], seed)
    for fraction in study.label_fractions:
        for encoder in study.encoders:
            for name, variant in chosen.items():
                for i, seed in enumerate(study.seeds):
                    start = first[i % len(first)]
                    planner.stage_two(encoder, name, variant, fraction, seed, start)
    return planner.cells


def _check_selections(config, study) -> None:
    for name in ("encoders", "variants", "seeds", "label_fractions"):
        values = study[name]
        if not values or len(set(values)) < len(values):
            raise UserError(f"config.study.{name} is {values}; name at least one, each once")
    if len(set(study.pretrain_seeds)) < len(study.pretrain_seeds):
        raise UserError(f"config.study.pretrain_seeds is {study.pretrain_seeds}; name each once")
    for name in study.encoders:
        if name not in ENCODERS:
            raise UserError(
                f"config.study.encoders names {name!r}; there are {', '.join(ENCODERS)}"
            )
    for name in study.variants:
        if name not in config.variants:
            raise UserError(
                f"config.study.variants names {name!r}; configs/study.py has "
                f"{', '.join(config.variants)}"
            )
    for fraction in study.label_fractions:
        if not 0 < fraction <= 1:
            raise UserError(
                f"config.study.label_fractions holds {fraction}; each must be above 0, at most 1"
            )


class _Planner:
    """Adds cells to a plan, each once."""

    def __init__(self, config, folder: str):
        self.cells: list[Cell] = []
        self._config = config
        self._folder = folder
        self._data = config.data.to_dict()
        self._by_folder: dict[str, Cell] = {}

    def stage_one(self, encoder: str, overrides: dict, seed: int) -> Cell:
        data = {"train": self._config.study.pretrain_data, "validation": "", "test": ""}
        base = {**self._config.pretrain.to_dict(), "data": {**self._data, **data}}
        name = self._stage_one_name(overrides)
        return self._add("pretrain", encoder, name, seed, [base, overrides])

    def probe(self, encoder: str, overrides: dict | None, seed: int) -> Cell:
        base = {
            "batch_size": self._config.finetune.batch_size,
            "data": {**self._data, "label_fraction": 1.0},
        }
        needs = []
        name = RANDOM
        if overrides is not None:
            needs = [self.stage_one(encoder, overrides, seed)]
            name = needs[0].name
            base["pretrained"] = needs[0].folder
        return self._add("probe", encoder, name, seed, [base], needs)

    def stage_two(
        self, encoder: str, name: str, variant: dict, fraction: float, seed: int, start: int
    ) -> Cell:
        """`start` is the seed of the stage one that it goes on from."""
        base = {
            **self._config.finetune.to_dict(),
            "data": {**self._data, "label_fraction": float(fraction)},
        }
        if self._config.study.label_draw == "seed":
            base["data"]["label_seed"] = int(seed)
        needs = []
        if variant["pretrained"]:
            needs = [self.stage_one(encoder, variant["pretrain"], start)]
            base["pretrained"] = needs[0].folder
        overrides = [base, variant["finetune"]]
        if "self_training" in variant["finetune"]:
            size = self._config.study.size
            usual = commands.compose("finetune", size, base)
            run = commands.compose("finetune", size, *overrides)
            overrides.append(_equally_many_images(name, usual, run))
        return self._add("finetune", encoder, name, seed, overrides, needs, fraction)

    def _stage_one_name(self, overrides: dict) -> str:
        changed = commands.flatten(overrides)
        objective = changed.pop("objective", self._config.pretrain.objective)
        return "-".join([objective, *(f"{k}={v}" for k, v in changed.items())])

    def _add(self, task, encoder, name, seed, overrides, needs=(), fraction=1.0) -> Cell:
        parts = [task, encoder, name.replace(" ", "-"), f"seed{seed}"]
        if task == "finetune":
            parts.insert(3, f"fraction{fraction:g}")
        folder = os.path.join(self._folder, *parts)
        if folder in self._by_folder:
            return self._by_folder[folder]
        size = self._config.study.size
        common = {"encoder": encoder, "seed": int(seed), "dtype": self._config.dtype}
        config = commands.compose(task, size, common, *overrides)
        _check(config, task)
        cell = Cell(
            index=len(self.cells),
            task=task,
            encoder=encoder,
            name=name,
            label_fraction=float(fraction),
            seed=int(seed),
            folder=folder,
            config=config,
            command=commands.arguments(config, size, folder),
            needs=tuple(cell.index for cell in needs),
        )
        self.cells.append(cell)
        self._by_folder[folder] = cell
        return cell


def _equally_many_images(name: str, usual: ConfigDict, run: ConfigDict) -> dict:
    """The steps with which a variant of self-training draws as many images as the study's own.

    Teachers' images are counted with the student's.
    """
    spare = teachers_images(usual) - teachers_images(run)
    if not spare:
        return {}
    if not run.train_steps:
        raise UserError(
            f"the variant {name} draws as many images as the others, with other teachers, so its "
            "study needs config.finetune.train_steps, not train_epochs"
        )
    steps = run.train_steps + round(spare / run.batch_size)
    if steps < 1:
        raise UserError(
            f"the teachers of the variant {name} alone draw more images than the others; raise "
            "config.finetune.train_steps"
        )
    return {"train_steps": steps}


def _check(config: ConfigDict, task: str) -> None:
    """Refuses what the run itself would refuse, but for a stage one that is still to come."""
    config = config.copy_and_resolve_references()
    if "pretrained" in config:
        config.pretrained = ""
    try:
        settings.check(config)
    except settings.ConfigError as error:
        raise UserError(f"a {task} run of this study: {error}") from None


def check_unchanged(cells: Sequence[Cell]) -> None:
    """Raises `UserError` where a cell's folder holds a run with other settings."""
    for cell in cells:
        changed = [
            change
            for change in workdir.changed_settings(cell.folder, cell.config)
            if not change.startswith("pretrained ")  # A study may be moved to another place.
        ]
        if changed:
            raise UserError(
                f"{cell.folder} was run with other settings: {', '.join(changed[:3])}; choose "
                "another --workdir for this study, or delete that folder to run it again"
            )


def select(cells: Sequence[Cell], text: str) -> list[Cell]:
    """The cells named by numbers and ranges, such as `0-11,20`; all for an empty text.

    Raises:
      UserError: it is something else, or names a cell that the plan lacks.
    """
    if not text:
        return list(cells)
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"config.study.cells is {text!r}; expected numbers such as 0-11,20")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= len(cells):
            raise UserError(
                f"config.study.cells names {part.strip()}; the plan has cells 0 to {len(cells) - 1}"
            )
        chosen.update(numbers)
    return [cells[i] for i in sorted(chosen)]


def describe(cells: Sequence[Cell], finished: set[int]) -> str:
    """The plan as a table for the terminal."""
    rows = [("cell", "task", "encoder", "what", "labels", "seed", "needs", "state")]
    for cell in cells:
        rows.append(
            (
                str(cell.index),
                cell.task,
                cell.encoder,
                cell.name,
                f"{cell.label_fraction:.0%}",
                str(cell.seed),
                ",".join(map(str, cell.needs)),
                "finished" if cell.index in finished else "to run",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
