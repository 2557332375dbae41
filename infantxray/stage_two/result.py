"""`Result`: the predictions that the Python API returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.extras import install_line
from infantxray.evaluation.predictions import joined_findings

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Result:
    """Predictions for N images.

    Attributes:
      classes: names of the K conditions; empty for a model of ages alone.
      probabilities: float32 `[N, K]`.
      age_months: float32 `[N]`; NaN for a model without an age head.
      image_path: the N files; empty where arrays were given.
      conditions: the prediction set of each image, which contains the true condition in 90 % of
        images like those of training. Empty if no sets were fitted.
      age_low_months, age_high_months: limits of the age with the same coverage, `[N]`; NaN where
        none were fitted.
      unlike_training: whether an image is far from the training images, bool `[N]`; None if the
        detector was not fitted.
      distance: distance from the training images, `[N]`; NaN if the detector was not fitted.
      positive: the conditions of each image that reach their threshold, by the rule that chose it
        on validation images, such as `"youden"`.
      multi_label: whether an image may have several conditions.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    age_months: np.ndarray
    image_path: tuple[str, ...] = ()
    conditions: tuple[tuple[str, ...], ...] = ()
    age_low_months: np.ndarray | None = None
    age_high_months: np.ndarray | None = None
    unlike_training: np.ndarray | None = None
    distance: np.ndarray | None = None
    positive: Mapping[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def predicted(self) -> list[str]:
        """The most probable condition of each image; empty without conditions.

        Where an image may have several: those of probability 0.5 and more, joined by `|`.
        """
        if not self.classes:
            return []
        if self.multi_label:
            return [joined_findings(self.classes, row) for row in self.probabilities]
        return [self.classes[k] for k in self.probabilities.argmax(1)]

    def to_pandas(self) -> pandas.DataFrame:
        """The columns of `predictions.csv` that do not need the truth.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            message = f"Result.to_pandas needs pandas: {install_line('pandas')}"
            raise UserError(message) from None
        columns: dict[str, Any] = {}
        if self.image_path:
            columns["image_path"] = self.image_path
        if self.classes:
            columns["predicted"] = self.predicted
        columns |= {f"p_{name}": self.probabilities[:, k] for k, name in enumerate(self.classes)}
        columns["age_predicted_months"] = self.age_months
        for name in ("age_low_months", "age_high_months", "unlike_training", "distance"):
            if getattr(self, name) is not None:
                columns[name] = getattr(self, name)
        listed = {"conditions": self.conditions} if self.conditions else {}
        for name, values in (
            listed | {f"positive_{k}": v for k, v in self.positive.items()}
        ).items():
            columns[name] = ["|".join(names) for names in values]
        return pandas.DataFrame(columns)
