"""`evaluate`: scores a stage-two model on held-out patients and writes the report."""

from __future__ import annotations

import logging
import os

import numpy as np

from data_pipeline.conditions import finding_names, warn_of_foreign
from data_pipeline.dataset import DataSettings, Reader, check_listed, open_role
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records
from data_pipeline.splits import check_unseen, read_split
from infantxray.reports.run_report import Review, evaluate
from infantxray.runs import runtime, settings, workdir
from infantxray.stage_two import self_training, transfer
from infantxray.stage_two.inference import Predictor, read_spec
from infantxray.training import processes

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Evaluates `config.checkpoint` on `config.data.test` into the workdir `folder`."""
    runtime.setup()
    spec = read_spec(config.checkpoint)
    trained = workdir.read_config(config.checkpoint)["data"]
    patient_ids = trained["patient_ids"]
    split_csv = os.path.join(os.path.expanduser(config.checkpoint), "split.csv")
    labelled = {key: trained[key] for key in ("normal_names",) if key in trained}
    data = settings.build(
        DataSettings,
        config.data,
        patient_ids=patient_ids,
        labels="multi" if spec.multi_label else "single",
        **labelled,
    )
    names = finding_names(data, read_split(split_csv), spec.classes)
    notes: list[str] = []
    workdir.prepare(folder, settings.to_dict(config))
    if data.test:
        records = _test_part(data, notes)
        check_listed(records, data.normal if names is not None else ())
        if names is not None:
            warn_of_foreign(names, records.label, "test")
            left_out = names.foreign(records.label)
        else:
            left_out = _warn_of_other_conditions(records, spec.classes)
        notes += [
            f"{count:,} images of {name!r}, which the model does not know"
            for name, count in left_out.items()
        ]
        check_unseen(split_csv, records, patient_ids, "this model was trained on")
        # They chose the checkpoint, the temperature, the prediction sets and the thresholds.
        check_unseen(
            split_csv, records, patient_ids, "this model was validated on", role="validation"
        )
        stage_one_known = _check_stage_one(config.checkpoint, records, patient_ids)
    else:
        records = read_split(split_csv).test.with_patients(patient_ids)
        stage_one_known = True  # Stage two has checked its own test patients.
    if not len(records):
        raise DataError("there are no test images")
    reader = Reader(data, spec.classes, spec.preprocessing, names=names, context=spec.context)
    validation = read_split(split_csv).validation.with_patients(patient_ids)
    try:
        evaluate(
            folder,
            checkpoint=config.checkpoint,
            source=reader(records),
            predictor=Predictor(spec, batch_size=config.batch_size, num_threads=data.num_threads),
            bootstrap_samples=config.bootstrap_samples,
            seed=config.seed,
            stage_one_known=stage_one_known,
            validation=reader(validation.take(validation.has_label)),
            review=settings.build(Review, config),
            data=data,
            reader=reader,
            names=names,
            label_notes=notes,
        )
    finally:
        reader.write_bad_files(folder, processes.part())


def _test_part(data: DataSettings, notes: list[str]) -> Records:
    """The images of `data.test`; of a source with its own split, only those for testing."""
    records = open_role(data.test, data, notes)
    test = records.split == "test"
    if data.given_splits == "ignore" or not test.any() or test.all():
        return records
    _log.info(
        "scored: %d of %d images, the test part of the split in the data "
        "(config.data.given_splits=ignore scores all)",
        test.sum(),
        len(records),
    )
    return records.take(test)


def _warn_of_other_conditions(records: Records, classes: tuple[str, ...]) -> dict[str, int]:
    """The labels that the model does not know, with their number of images."""
    if not classes:
        return {}
    found = {}
    names, counts = np.unique(records.label[records.has_label].astype(str), return_counts=True)
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        if name not in classes:
            found[name] = count
            _log.warning(
                "%d images of %r are left out of the diagnosis: the model knows %s; rename labels "
                "with config.data.label_map",
                count,
                name,
                ", ".join(classes),
            )
    return found


def _check_stage_one(checkpoint: str, records: Records, patient_ids: str) -> bool:
    """Whether all runs that taught a model beforehand could be checked; their folders may be gone.

    Only their training patients are refused: stage two starts from the last step, which no
    validation patient has chosen.

    Args:
      checkpoint: the workdir of the model.
      records: images to be scored.
      patient_ids: see `Records.with_patients`.

    Raises:
      DataError: one of the runs was trained on these patients or images.
    """
    trained = workdir.read_config(checkpoint)
    committee = trained.get("self_training", {}).get("committee", "")
    first = {trained["pretrained"]: "stage one of this model was trained on"}
    for place in self_training.Teaching(committee=committee).members:
        first.setdefault(place, f"the committee that taught this model ({place}) was trained on")
    known = True
    for pretrained, what in first.items():
        for place in transfer.walk(pretrained):
            folder = os.path.expanduser(place)
            files = [os.path.join(folder, name) for name in ("split.csv", "config.json")]
            missing = [path for path in files if not os.path.exists(path)]
            if missing:
                _log.warning(
                    "%s is missing: whether stage one saw these patients cannot be checked",
                    missing[0],
                )
                known = False
                break
            check_unseen(files[0], records, patient_ids, what)
    return known
