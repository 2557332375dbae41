"""The model specification, `model.json`: all that is needed to rebuild and use a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from data_pipeline.cells import composed
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from infantxray.models.input_scale import IMAGENET
from infantxray.runs.workdir import read_json
from infantxray.training import processes

FILE = "model.json"
_EARLIER_FILE = "preprocessing.json"  # In runs of earlier versions, with the same keys.


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The specification of a model, stored with its checkpoints.

    Attributes:
      encoder: name of the network, a key of `ENCODERS`.
      dtype: dtype of the computation.
      preprocessing: preprocessing of a file to an image.
      classes: names of the conditions, in the order of the logits; empty in stage one.
      age_mean_months, age_std_months: of the training ages, by which predicted ages are
        standardised; None where there is no age head.
      age_range_months: lowest and highest age of distribution regression; None for a single number.
      age_film: whether the age modulates the features of the condition head.
      input_mean, input_std: of intensities in [0, 1], by which images are normalised.
      objective: objective of stage one; empty in stage two.
      context: names of further inputs of the heads, such as `sex=F`; see `data_pipeline.context`.
      multi_label: whether an image may have several conditions: one sigmoid a condition.
      source_labels: whether stage one, or one before it, learned from labels of the source data.
    """

    encoder: str
    dtype: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    age_mean_months: float | None = None
    age_std_months: float | None = None
    age_range_months: tuple[float, float] | None = None
    age_film: bool = False
    input_mean: float = IMAGENET.mean
    input_std: float = IMAGENET.std
    objective: str = ""
    multi_label: bool = False
    context: tuple[str, ...] = ()
    source_labels: bool = False

    @property
    def has_age(self) -> bool:
        """Whether there is an age head."""
        return self.age_mean_months is not None

    @property
    def has_heads(self) -> bool:
        """Whether it is a model of stage two."""
        return bool(self.classes) or self.has_age

    @property
    def age_range(self) -> tuple[float, float] | None:
        """`age_range_months`, standardised."""
        if self.age_range_months is None:
            return None
        low, high = self.age_range_months
        return self.standardise_age(low), self.standardise_age(high)

    def standardise_age(self, months: Any) -> Any:
        """Months -> standard deviations from the mean of the training ages."""
        return (months - self.age_mean_months) / self.age_std_months

    def age_in_months(self, standardised: Any) -> Any:
        """The inverse of `standardise_age`."""
        return standardised * self.age_std_months + self.age_mean_months

    def write(self, workdir: str) -> None:
        """Writes `model.json`. All processes of a run call it; the first one writes."""
        values = dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_dict()}
        with processes.main_first():
            if processes.is_main():
                write_json(os.path.join(workdir, FILE), values, checksum=True)

    @classmethod
    def read(cls, workdir: str) -> ModelSpec:
        """Reads the specification of a run of either stage.

        Raises:
          UserError: the folder is not the workdir of such a run, or the file is damaged.
        """
        folder = os.path.expanduser(workdir)
        earlier = not os.path.exists(os.path.join(folder, FILE))
        name = _EARLIER_FILE if earlier else FILE
        if earlier and not os.path.exists(os.path.join(folder, name)):
            name = FILE  # The one to name in the message.
        values = read_json(workdir, name)
        known = {field.name for field in dataclasses.fields(cls)}
        missing = {"encoder", "dtype", "preprocessing"} - values.keys()
        unknown = sorted(values.keys() - known)
        if missing or unknown:
            problem = f"lacks {sorted(missing)[0]!r}" if missing else f"has the key {unknown[0]!r}"
            raise UserError(
                f"{os.path.join(folder, name)} {problem}: it is damaged, or written by a later "
                "version of this program"
            )
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        # Labels are composed when they are read; earlier versions kept them as a file system did.
        values["classes"] = tuple(map(composed, values.get("classes", ())))
        values["context"] = tuple(values.get("context", ()))
        if values.get("age_range_months"):
            values["age_range_months"] = tuple(values["age_range_months"])
        return cls(**values)
