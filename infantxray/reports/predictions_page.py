"""The page of `predict`: each image with its probabilities, age and saliency."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from infantxray.reports.page import write_page

_SHOWN = 4  # Conditions of an image, or more if its prediction set or its findings have more.


@dataclasses.dataclass(frozen=True)
class Card:
    """An image of the page.

    Attributes:
      image: uint8 `[S, S]`.
      heat: saliency of the predicted condition in [0, 1], `[S, S]`; None without conditions.
      answer: what was predicted, as the JSON of an image has it.
    """

    image: np.ndarray
    heat: np.ndarray | None
    answer: dict[str, Any]

    @property
    def overlay(self) -> np.ndarray | None:
        """The image with its saliency in red, uint8 `[S, S, 3]`."""
        if self.heat is None:
            return None
        share = 0.6 * np.clip(self.heat, 0, 1)[..., None]
        red = np.array([255, 60, 0])
        return np.rint((1 - share) * self.image[..., None] + share * red).astype(np.uint8)

    @property
    def top(self) -> list[tuple[str, float]]:
        """The most probable conditions, all of the prediction set and all that are predicted."""
        ranked = sorted(self.answer["probabilities"].items(), key=lambda item: -item[1])
        named = {*self.answer.get("conditions", ()), *self.answer["predicted"].split("|")}
        return ranked[:_SHOWN] + [item for item in ranked[_SHOWN:] if item[0] in named]

    @property
    def marked(self) -> set[str]:
        """The prediction set, or the findings that are predicted."""
        if "unknown" in self.answer:
            return set(self.answer["predicted"].split("|"))
        return set(self.answer.get("conditions", ()))

    @property
    def more(self) -> int:
        """How many conditions are not shown."""
        return len(self.answer["probabilities"]) - len(self.top)


def write_predictions_page(
    path: str | os.PathLike[str],
    cards: Sequence[Card],
    *,
    total: int,
    coverage: float = 0.0,
) -> None:
    """Writes the page.

    Args:
      path: path of the page.
      cards: the images to show.
      total: images that were predicted.
      coverage: coverage of prediction sets and limits of age, if there are any.
    """
    legend = []
    if any(card.heat is not None for card in cards):
        several = any("unknown" in card.answer for card in cards)  # Findings of an image.
        noun = "finding" if several else "condition"
        legend.append(f"Red marks what speaks for the most probable {noun}.")
        if several:
            legend.append("● marks the findings with a probability of at least 0.5.")
    legend.append("predictions.csv has every number.")
    share = f"in {100 * coverage:g} % of images like those of training."
    if any(card.answer.get("conditions") for card in cards):
        legend.append(f"● marks the prediction set, which contains the true condition {share}")
    if any(card.answer.get("age_low_months") is not None for card in cards):
        legend.append(f"The limits of the age contain the true age {share}")
    write_page(path, "predictions", title="Predictions", cards=cards, total=total, legend=legend)
