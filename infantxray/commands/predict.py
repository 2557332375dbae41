"""`predict`: conditions and ages of images without labels, with what can be trusted of them."""

from __future__ import annotations

import csv
import logging
import os
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline import tables
from data_pipeline.adapters import ADAPTERS
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.decode import load_image
from data_pipeline.errors import DataError, UnreadableImage, UserError
from data_pipeline.files import write_checksums, write_json
from data_pipeline.labels import FindingNames
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from data_pipeline.remote import is_remote
from data_pipeline.sources import open_sources
from infantxray.evaluation.predictions import UNKNOWN
from infantxray.evaluation.saliency import Explainer
from infantxray.export import dicom_out
from infantxray.reports.predictions_page import Card, write_predictions_page
from infantxray.runs import runtime, settings, workdir
from infantxray.stage_two import reconstruction
from infantxray.stage_two.answers import Answerer, Answers, load_members
from infantxray.stage_two.inference import build_model
from infantxray.training import processes

_log = logging.getLogger(__name__)
MOST_PICTURES = 500  # On the page, which is one file.


def run(config, folder: str) -> None:
    """Writes `predictions.csv` of `config.data.test` into the workdir `folder`."""
    runtime.setup()
    places = settings.checkpoints(config)
    if not config.data.test:
        raise UserError("name the images: --config.data.test=folder:/data/new_images")
    data = settings.build(DataSettings, config.data, test=as_source(config.data.test))
    records = open_sources(data.test)
    members = load_members(places, calibrate=config.calibrate)
    spec = members[0].spec
    workdir.prepare(folder, settings.to_dict(config))
    reader = Reader(data, spec.classes, spec.preprocessing, context=spec.context)
    answerer = Answerer(
        members,
        batch_size=config.batch_size,
        num_threads=data.num_threads,
        augmentations=config.augmentations,
        reconstruction=reconstruction.for_workdir(places[0], spec)
        if config.reconstruction
        else None,
    )
    extras = Extras(folder, answerer, json=config.json, pages=config.pictures, dicom=config.dicom)
    source = reader(records)
    try:
        count = write_rows(os.path.join(folder, "predictions.csv"), answerer, source, extras)
    except UnreadableImage as error:
        raise DataError(
            f"{error}; --config.data.on_error=skip leaves such images out and lists them"
        ) from error
    finally:
        reader.write_bad_files(folder, processes.part())
    if not count:
        raise DataError("none of the images could be read; bad_files.csv says why")
    if not processes.is_main():
        return
    extras.close()
    write_checksums(folder, ["predictions.csv"])
    plural = "" if count == 1 else "s"
    _log.info("%d prediction%s: %s", count, plural, os.path.join(folder, "predictions.csv"))
    if extras.noted:
        _log.warning("%d of %d have a note, such as unusual images", extras.noted, count)


def as_source(place: str) -> str:
    """A file, a folder, a DICOM series or a CSV file as `source:place`; others as they are.

    Raises:
      UserError: it is neither `source:place` nor a file or folder.
    """
    path = os.path.expanduser(place)
    if is_remote(place) and place.lower().endswith(".csv"):
        return f"manifest:{place}"
    if place.partition(":")[0] in ADAPTERS or (":" in place and not os.path.exists(path)):
        return place
    if not os.path.exists(path):
        raise UserError(f"config.data.test: there is no file or folder {place}")
    escaped = place.replace(",", "\\,")
    return f"manifest:{escaped}" if path.lower().endswith(".csv") else f"folder:{escaped}"


def write_rows(path: str, answerer: Answerer, source: ImageSource, extras: Extras) -> int:
    """Writes rows as they are computed; the file gets its name when it is complete.

    Memory does not grow with the number of images. After an error, `predictions.csv.partial` holds
    the rows written so far.

    Returns:
      The number of rows.
    """
    if not processes.is_main():  # Takes part in the computation alone.
        return sum(len(records) for _, records in answerer.stream(source))
    classes = answerer.members[0].spec.classes
    partial, count = f"{path}.partial", 0
    with (
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        tqdm(total=len(source), unit="image", disable=not sys.stderr.isatty()) as progress,
    ):
        writer: csv.DictWriter[str] | None = None
        for answers, records in answerer.stream(source):
            rows = row_values(answers, records, answerer)
            for i, row in enumerate(rows):
                if writer is None:
                    writer = csv.DictWriter(file, [tables.neutralise(name) for name in row])
                    writer.writeheader()
                writer.writerow({tables.neutralise(k): _cell(v) for k, v in row.items()})
                extras.add(row, answers, i)
            file.flush()
            count += len(rows)
            progress.update(len(rows))
        if writer is None:
            file.write(",".join(("image_path", *(f"p_{name}" for name in classes))) + "\n")
    os.replace(partial, path)
    return count


def row_values(answers: Answers, records: Records, answerer: Answerer) -> list[dict[str, Any]]:
    """The columns of `predictions.csv` for N images, unrounded; unknown values are None."""
    predictions, judged = answers.predictions, answers.judgement
    classes, trusts = predictions.classes, [m.trust for m in answerer.members if m.trust]
    ranges = [t.age_range_months for t in trusts if t.age_range_months]
    names, rows = predictions.names(), []
    truth = FindingNames(classes).matrix(records)  # Without labels, all unknown.
    for i in range(len(predictions)):
        p = predictions.probabilities[i]
        row: dict[str, Any] = {
            "image_path": records.image_path[i],
            "patient_id": records.patient_id[i],
            "label": records.label[i],
            "predicted": names[i],
        }
        row |= {f"p_{name}": float(p[k]) for k, name in enumerate(classes)}
        row["age_months"] = _known(records.age_months[i])
        row["age_predicted_months"] = _known(predictions.age_predicted_months[i])
        if predictions.multi_label:
            row[UNKNOWN] = [classes[k] for k in np.flatnonzero(np.isnan(truth[i]))]
        for rule, reached in answers.positive.items():
            row[f"positive_{rule}"] = [classes[k] for k in np.flatnonzero(reached[i])]
        if trusts:
            row["age_low_months"] = _known(judged.age_low_months[i])
            row["age_high_months"] = _known(judged.age_high_months[i])
            inside: Any = [] if judged.in_set is None else np.flatnonzero(judged.in_set[i])
            row["conditions"] = [classes[k] for k in inside]
            row["distance"] = _known(judged.distance[i])
            unlike = judged.unlike_training
            row["unlike_training"] = None if unlike is None else bool(unlike[i])
        if answers.reconstruction_error is not None and answerer.reconstruction is not None:
            error = float(answers.reconstruction_error[i])
            row["reconstruction_error"] = error
            row["badly_rebuilt"] = error > answerer.reconstruction.threshold
        row["note"] = _note(row, bool(answers.constant[i]), ranges[0] if ranges else None)
        rows.append(row)
    return rows


def _note(row: dict[str, Any], constant: bool, ages: tuple[float, float] | None) -> str:
    notes = []
    if constant:
        notes.append("of one grey value")
    if row.get("unlike_training"):
        notes.append("unlike the training images")
    if row.get("badly_rebuilt"):
        notes.append("rebuilt badly by the autoencoder of stage one")
    for key, name in (("age_months", "age"), ("age_predicted_months", "predicted age")):
        months = row[key]
        if ages and months is not None and not ages[0] <= months <= ages[1]:
            notes.append(
                f"{name} {months:.1f} months is outside the training range, "
                f"{ages[0]:.1f} to {ages[1]:.1f}"
            )
    return "; ".join(notes)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        value = "|".join(value)
    if isinstance(value, str):
        return tables.neutralise(value)
    return f"{value:.7g}" if isinstance(value, float) else value


class Extras:
    """Output beside the table: JSON, a page of pictures, DICOM objects.

    Args:
      folder: the workdir.
      answerer: the models.
      json: one JSON file for each image, in `json/`.
      pages: `predictions.html`, with each image and its saliency, of the first 500 images.
      dicom: a Structured Report and a secondary capture of the saliency an image, in `dicom/`.

    Attributes:
      noted: images with a note.
    """

    def __init__(self, folder: str, answerer: Answerer, *, json: bool, pages: bool, dicom: bool):
        self._folder, self._answerer = folder, answerer
        self._json, self._pages, self._dicom = json, pages, dicom
        self._cards: list[Card] = []
        self._count = self.noted = 0
        self._spec = answerer.members[0].spec
        if dicom:
            dicom_out.check_installed()
        for name, wanted in (("json", json), ("dicom", dicom)):
            if wanted:
                os.makedirs(os.path.join(folder, name), exist_ok=True)
        member = answerer.members[0]
        self._explain = Explainer(
            build_model(self._spec),
            member.variables,
            mean=self._spec.input_mean,
            std=self._spec.input_std,
            batch_size=1,
        )

    def add(self, row: dict[str, Any], answers: Answers, i: int) -> None:
        """Writes the files of one image."""
        self._count += 1
        self.noted += bool(row.get("note"))
        name = f"{self._count:06d}_{_stem(row['image_path'])}"
        if self._json:
            answer = nested(row) | {"thresholds": self._answerer.members[0].thresholds()}
            write_json(os.path.join(self._folder, "json", f"{name}.json"), answer)
        wanted = self._pages and len(self._cards) < MOST_PICTURES
        if not (wanted or self._dicom):
            return
        image = load_image(row["image_path"], self._spec.preprocessing)
        heat = None
        if self._spec.classes:
            target = int(answers.predictions.probabilities[i].argmax())
            heat = self._explain(image[None, ..., None], np.array([target]))[0]
        if wanted:
            self._cards.append(Card(image, heat, nested(row)))
        if self._dicom:
            dicom_out.write(
                os.path.join(self._folder, "dicom"),
                name,
                row["image_path"],
                nested(row),
                image,
                heat,
                model=f"infantxray {self._spec.encoder}, step {self._answerer.members[0].step}",
            )

    def close(self) -> None:
        """Writes the page."""
        if not self._pages:
            return
        path = os.path.join(self._folder, "predictions.html")
        trusts = [member.trust for member in self._answerer.members if member.trust]
        coverage = min((trust.coverage for trust in trusts), default=0.0)
        write_predictions_page(path, self._cards, total=self._count, coverage=coverage)
        _log.info("page: %s", path)


def nested(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its probabilities under one key."""
    result = {k: v for k, v in row.items() if not k.startswith("p_")}
    result["probabilities"] = {k[2:]: v for k, v in row.items() if k.startswith("p_")}
    return result


def _stem(path: str) -> str:
    """The name of a file without suffix, of letters that every file system takes."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:80]
