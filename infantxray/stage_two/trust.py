"""Calibration, conformal prediction and out-of-distribution detection of a stage-two model.

`trust_fitting` learns them from validation patients and training features at the end of stage two;
`Trust` applies them to new images. They are stored beside the model: `trust.json`, and `trust.npz`
for the statistics of the features.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import replaced, write_json
from infantxray.evaluation import conformal
from infantxray.evaluation.calibration import findings_calibration
from infantxray.evaluation.operating_points import OperatingPoint
from infantxray.evaluation.outliers import OutlierDetector
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.summary import to_json
from infantxray.evaluation.temperature import (
    before_and_after,
    scale,
    scale_binary,
)
from infantxray.runs import workdir

PyTree = Any

FILE, ARRAYS = "trust.json", "trust.npz"
_DISTANCE = "mahalanobis"  # One linear map, so that an exported model needs no training images.

# What reading a damaged archive raises.
_DAMAGE = (KeyError, TypeError, ValueError, EOFError, NotImplementedError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Calibrated probabilities, prediction sets, intervals and warnings for N images.

    Attributes:
      probabilities: calibrated, float32 `[N, K]`.
      in_set: conditions in the prediction set, bool `[N, K]`; None if no sets were fitted.
      age_low_months, age_high_months: limits of the age, `[N]`; NaN if they were not fitted.
      distance: distance from the training images, `[N]`; NaN if it was not fitted.
      unlike_training: whether that distance is above the threshold, bool `[N]`; None if it was not
        fitted.
    """

    probabilities: np.ndarray
    in_set: np.ndarray | None
    age_low_months: np.ndarray
    age_high_months: np.ndarray
    distance: np.ndarray
    unlike_training: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Trust:
    """Fitted calibration, prediction sets, age interval and outlier detector.

    Attributes:
      coverage: coverage of prediction sets and age intervals.
      n_validation: images that they were fitted on.
      temperature: temperature of the softmax, or of the sigmoid of each finding; None = not fitted.
      sets: thresholds of prediction sets.
      age_half_width_months: half the width of the age interval.
      age_range_months: lowest and highest known age of the training images.
      points: thresholds of calibrated probabilities, by the rules of `config.operating_points`.
      detector: statistics of the training features.
      skipped: reasons for components that were not fitted.
      test: results on test patients, from `score`.
    """

    coverage: float = 0.9
    n_validation: int = 0
    temperature: float | tuple[float, ...] | None = None
    sets: conformal.ConformalSets | None = None
    age_half_width_months: float | None = None
    age_range_months: tuple[float, float] | None = None
    points: tuple[OperatingPoint, ...] = ()
    detector: OutlierDetector | None = None
    skipped: str = ""
    test: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def distance_threshold(self) -> float:
        """Threshold of the distance: larger distances are unlike the training images."""
        assert self.detector is not None
        return float(self.detector.thresholds[self.detector.names.index(_DISTANCE)])

    def judge(
        self, probabilities: np.ndarray, age_months: np.ndarray, features: np.ndarray | None
    ) -> Judgement:
        """Applies everything that was fitted.

        Args:
          probabilities: as the model gives them, `[N, K]`.
          age_months: predicted, `[N]`.
          features: pooled last maps, `[N, C]`; None = no distances.
        """
        nothing = np.full(len(probabilities), np.nan, np.float32)
        if isinstance(self.temperature, tuple):
            probabilities = scale_binary(probabilities, np.asarray(self.temperature))
        elif self.temperature is not None:
            probabilities = scale(probabilities, self.temperature)
        probabilities = probabilities.astype(np.float32)
        low = high = distance = nothing
        unlike: np.ndarray | None = None
        if self.age_half_width_months is not None:
            low, high = conformal.age_interval(age_months, self.age_half_width_months)
        if self.detector is not None and features is not None:
            distance = np.linalg.norm(
                (features.astype(np.float32) - self.detector.mean) @ self.detector.whitening.T,
                axis=1,
            )
            unlike = distance > self.distance_threshold
        return Judgement(
            probabilities,
            None if self.sets is None else conformal.predict_sets(self.sets, probabilities),
            low,
            high,
            distance,
            unlike,
        )

    def score(self, predictions: Predictions) -> dict[str, Any]:
        """Calibration before and after, coverage and abstention, on test images.

        Args:
          predictions: predictions of the model, before calibration.
        """
        result: dict[str, Any] = {}
        ages, label = predictions.age_predicted_months, predictions.label
        judged = self.judge(predictions.probabilities, ages, None)
        if predictions.findings is not None:
            if self.temperature is not None:
                result["calibration"] = {
                    "before": findings_calibration(predictions.probabilities, predictions.findings),
                    "after": findings_calibration(judged.probabilities, predictions.findings),
                }
        elif isinstance(self.temperature, float) and (label >= 0).any():
            result["calibration"] = before_and_after(
                predictions.probabilities, label, self.temperature
            )
            result["abstention"] = conformal.abstention_curve(
                judged.probabilities, label, predictions.patient
            )
        if judged.in_set is not None and (label >= 0).any():
            result["sets"] = conformal.set_coverage(
                judged.in_set,
                label,
                predictions.patient,
                predictions.classes,
                predictions.age_months,
            )
        if self.age_half_width_months is not None:
            result["age"] = conformal.age_interval_coverage(
                judged.age_low_months,
                judged.age_high_months,
                predictions.age_months,
                predictions.patient,
            )
        return to_json(_plain(result))

    def write(self, folder: str) -> None:
        """Writes `trust.json` and `trust.npz` into a workdir."""
        arrays = self.detector.arrays() if self.detector else {}
        with replaced(os.path.join(folder, ARRAYS), "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["detector"] = self.detector is not None
        values["sets"] = None if self.sets is None else dataclasses.asdict(self.sets)
        values["points"] = [dataclasses.asdict(point) for point in self.points]
        write_json(os.path.join(folder, FILE), values, checksum=True)

    @classmethod
    def read(cls, folder: str) -> Trust | None:
        """Reads the files of `write`; None if there are none.

        Raises:
          UserError: the files are damaged.
        """
        folder = os.path.expanduser(folder)
        if not os.path.exists(os.path.join(folder, FILE)):
            return None
        values = workdir.read_json(folder, FILE)
        try:
            if values["sets"] is not None:
                sets = values["sets"]
                sets["thresholds"] = tuple(sets["thresholds"])
                values["sets"] = conformal.ConformalSets(**sets)
            if values["age_range_months"] is not None:
                values["age_range_months"] = tuple(values["age_range_months"])
            values.pop("thresholds", None)  # Of earlier versions.
            values["points"] = tuple(OperatingPoint(**p) for p in values.get("points", ()))
            if isinstance(values["temperature"], list):
                values["temperature"] = tuple(values["temperature"])
            if values.pop("detector"):
                with np.load(os.path.join(folder, ARRAYS)) as arrays:
                    values["detector"] = OutlierDetector.from_arrays(dict(arrays))
            return cls(**values)
        except (*_DAMAGE, OSError) as error:
            raise UserError(
                f"{os.path.join(folder, FILE)} is damaged ({error}); delete it, and it is "
                "fitted again"
            ) from None


def _plain(value: Any) -> Any:
    """Nested results with metrics as dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
