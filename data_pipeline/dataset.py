"""Data sets: from settings to divided records and readers of images."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_pipeline.cells import composed
from data_pipeline.context import context_matrix
from data_pipeline.decode import Preprocessing
from data_pipeline.division import divide, keep_labels
from data_pipeline.doubts import doubtful_spellings
from data_pipeline.errors import DataError
from data_pipeline.labels import (
    NORMAL_NAMES,
    FindingNames,
    map_labels,
    merge_rows,
    parse_label_map,
    resolve_uncertain,
)
from data_pipeline.loader import WHOLE, BadFiles, ImageSource, Part
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.repeats import check_repeats
from data_pipeline.sources import open_sources
from data_pipeline.splits import ChangedData, Split, check_unchanged, write_split

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Sources of images, and how they are divided and read: `config.data`.

    Attributes:
      train, validation, test: comma-separated `source:place`; an empty role is split from `train`.
      given_splits: `"keep"` the splits of sources, or `"ignore"` them.
      validation_fraction, test_fraction: of the patients of a source without a split.
      split_seed: seed of the split.
      patient_ids: `"shared"`, an id means the same person in every source, or `"source"`.
      classes: names of the conditions; empty = those found.
      labels: `"single"`, one condition an image, or `"multi"`, any number of findings.
      label_map: other names for labels, see `labels.parse_label_map`.
      normal_names: labels that mean no finding, separated by commas, with `"multi"`.
      uncertain: findings of training images that are uncertain, with `"multi"`: see
        `labels.resolve_uncertain`. Those of other images stay unknown.
      label_fraction: share of the training patients; the others lose their labels and ages.
      label_seed: of the choice of those patients.
      image_size, resize, trim_borders: see `Preprocessing`.
      on_error: `"raise"` for a file that cannot be read, or `"skip"`.
      cache: folder of decoded images; empty = none.
      memory_mb: MiB; decoded images are kept in memory if all of them fit into this size.
      num_threads: number of decoding threads.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    given_splits: str = "keep"
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    patient_ids: str = "shared"
    classes: tuple[str, ...] = ()
    labels: str = "single"
    label_map: str = ""
    normal_names: str = ",".join(NORMAL_NAMES)
    uncertain: str = "ignore"
    label_fraction: float = 1.0
    label_seed: int = 0
    image_size: int = 64
    resize: str = "pad"
    trim_borders: bool = False
    on_error: str = "raise"
    cache: str = ""
    memory_mb: int = 0
    num_threads: int = 4

    @property
    def multi_label(self) -> bool:
        return self.labels == "multi"

    @property
    def normal(self) -> tuple[str, ...]:
        """`normal_names`, one by one."""
        return tuple(filter(None, map(str.strip, composed(self.normal_names).split(","))))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.image_size, self.resize, self.trim_borders)


def open_role(spec: str, settings: DataSettings, notes: list[str] | None = None) -> Records:
    """The records of some sources, with patients resolved by `settings.patient_ids`.

    Args:
      spec: the sources.
      settings: settings of the data.
      notes: what `settings.label_map` changed is added, for the report.
    """
    records = open_sources(spec).with_patients(settings.patient_ids)
    records, mapped = map_labels(records, parse_label_map(settings.label_map))
    for note in mapped:
        _log.info("%s: %s", spec, note)
    if notes is not None:
        notes += [note for note in mapped if note not in notes]
    if settings.multi_label:
        records = merge_rows(records, settings.normal)
    if settings.given_splits == "ignore":
        records = records.replace(split=np.full(len(records), "", dtype=object))
    return records


def divide_sources(settings: DataSettings, notes: list[str] | None = None) -> Split:
    """Opens the sources and divides their records by patient. `notes`: see `open_role`."""
    split = divide(
        open_role(settings.train, settings, notes),
        open_role(settings.validation, settings, notes) if settings.validation else None,
        open_role(settings.test, settings, notes) if settings.test else None,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
    )
    if settings.multi_label:
        train = resolve_uncertain(split.train, settings.uncertain)
        split = dataclasses.replace(split, train=train)
    return split


def open_split(settings: DataSettings, folder: str, notes: list[str] | None = None) -> Split:
    """`divide_sources` with `label_fraction` applied, logged, and recorded in `split.csv`.

    Args:
      settings: the data.
      folder: the workdir.
      notes: see `open_role`.

    Raises:
      DataError: the run in this folder began with other images, labels or splits, or a file is
        listed several times with different labels.
    """
    split = divide_sources(settings, notes)
    train = keep_labels(
        split.train, settings.label_fraction, settings.split_seed, settings.label_seed
    )
    split = dataclasses.replace(split, train=train)
    for name in SPLITS:
        _log.info("%-10s %s", name, describe(split[name]))
    everyone = Records.concatenate([split[name] for name in SPLITS])
    normal = settings.normal if settings.multi_label else ()
    for message, _ in doubtful_spellings(everyone, normal):
        _log.warning(message)
    check_repeats(split)
    path = os.path.join(folder, "split.csv")
    if os.path.exists(path):
        check_unchanged(path, split)
    else:
        write_split(path, split)
    return split


def check_finished(settings: DataSettings, folder: str, *, labels: bool = True) -> None:
    """Checks that the data of a finished run is still the same, as far as it can be read.

    Args:
      settings: the data.
      folder: the workdir.
      labels: compare labels and ages too.

    Raises:
      DataError: images, labels or splits differ.
    """
    try:
        split = divide_sources(settings)
        train = keep_labels(
            split.train, settings.label_fraction, settings.split_seed, settings.label_seed
        )
        check_unchanged(
            os.path.join(folder, "split.csv"),
            dataclasses.replace(split, train=train),
            labels=labels,
            order=False,
        )
    except ChangedData as error:
        raise DataError(f"{folder} is finished, but {error}") from None
    except DataError as error:  # A finished run may outlive its data.
        _log.info("the data of this run cannot be compared with what it was: %s", error)


def check_listed(records: Records, normal: Collection[str] = ()) -> None:
    """Checks the images of an evaluation as `open_split` checks those of training.

    Args:
      records: the images.
      normal: labels that mean no finding, where an image may have several findings.

    Raises:
      DataError: a file is listed several times with different labels.
    """
    for message, _ in doubtful_spellings(records, normal):
        _log.warning(message)
    nothing = records.take(np.zeros(len(records), bool))
    check_repeats(Split(train=nothing, validation=nothing, test=records))


def describe(records: Records) -> str:
    """One line: how many images and patients there are, and what is unknown."""
    text = f"{len(records):,} images of {len(set(records.patient)):,} patients"
    for what, known in (("label", records.has_label), ("age", records.has_age)):
        missing = int((~known).sum())
        if missing:
            text += f", {missing:,} without {what}"
    anonymous = int((records.patient_id == "").sum())
    if anonymous:
        text += (
            f" ({anonymous:,} images have no patient id and are split image by image: whether "
            "a patient is on two sides cannot be known)"
        )
    return text


class Reader:
    """Makes readers of images with one set of policies.

    Args:
      settings: `on_error`, `cache` and `memory_mb` are used.
      classes: names of the conditions; a label that is not among them counts as unknown.
      preprocessing: preprocessing of a file to an image; None = that of `settings`.
      bad_files: a list to add to.
      names: names of findings, where an image may have several.
      context: names of further inputs, see `context.find_context`.

    Attributes:
      bad_files: the files that could not be read, of all readers.
    """

    def __init__(
        self,
        settings: DataSettings,
        classes: tuple[str, ...] = (),
        preprocessing: Preprocessing | None = None,
        bad_files: BadFiles | None = None,
        names: FindingNames | None = None,
        context: tuple[str, ...] = (),
    ):
        self._settings, self._classes, self._names = settings, classes, names
        self._context = context
        self._preprocessing = preprocessing or settings.preprocessing
        self.bad_files = bad_files if bad_files is not None else BadFiles()
        self._memory: dict[str, np.ndarray] = {}

    def with_classes(self, classes: tuple[str, ...]) -> Reader:
        """A reader for other conditions, with the same images in memory and list of bad files."""
        other = Reader(self._settings, classes, self._preprocessing, self.bad_files)
        other._memory = self._memory
        return other

    def skipping(self, classes: tuple[str, ...], names: FindingNames | None) -> Reader:
        """A reader with the same images in memory that passes over unreadable files, unlisted."""
        settings = dataclasses.replace(self._settings, on_error="skip")
        other = Reader(settings, classes, self._preprocessing, names=names)
        other._memory = self._memory
        return other

    def __call__(self, records: Records, *, training: bool = False) -> ImageSource:
        """A reader of `records`; in training an unreadable image is replaced by the next one."""
        return ImageSource(
            records,
            self._classes,
            self._preprocessing,
            on_error=self._settings.on_error,
            substitute=training,
            cache=self._settings.cache,
            memory_mb=self._settings.memory_mb,
            memory=self._memory,
            bad_files=self.bad_files,
            findings=self._names.matrix(records) if self._names else None,
            context=context_matrix(self._context, sex=records.sex, view=records.view)
            if self._context
            else None,
        )

    def write_bad_files(self, folder: str, part: Part = WHOLE, *, extend: bool = False) -> None:
        """Writes `bad_files.csv`, or `bad_files.<process>.csv`, where there are any.

        Args:
          folder: the workdir.
          part: of this process.
          extend: see `BadFiles.write`.
        """
        number = f".{part.index}" if part.index else ""
        self.bad_files.write(Path(folder, f"bad_files{number}.csv"), extend=extend)


def age_statistics(records: Records) -> tuple[float, float]:
    """Mean and standard deviation of the known ages, months.

    Raises:
      DataError: fewer than two ages are known, or all are equal.
    """
    ages = records.age_months[records.has_age].astype(np.float64)
    if len(ages) < 2 or ages.std() == 0:
        raise DataError(
            f"{len(ages)} training images have a known age{' (all equal)' if len(ages) else ''}, "
            "too few to learn ages from; set config.age_head=False"
        )
    return float(ages.mean()), float(ages.std())
