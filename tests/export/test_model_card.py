"""The model card, from plain values."""

import pytest

from data_pipeline.decode import Preprocessing
from infantxray.export.model_card import model_card
from infantxray.stage_two.trust import Trust

METRICS = {"n": 60, "roc_auc": 0.7, "accuracy": 0.4, "ci95": {"roc_auc": [0.6, 0.8]}}


def card(*, trust=None, multi_label=False, **preprocessing):
    model = {
        "date": "2026-01-01",
        "encoder": "shufflenet",
        "preprocessing": Preprocessing(64, **preprocessing).to_dict(),
        "classes": ["normal", "mass"],
        "multi_label": multi_label,
        "age": None,
    }
    return model_card(
        "a",
        model=model,
        metrics=METRICS,
        bands={},
        trust=trust or Trust(),
        outputs=("probabilities",),
        training=None,
        licence="",
        version="1",
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_card_says_that_its_metrics_are_before_calibration(multi_label):
    text = card(
        trust=Trust(temperature=(1.5, 2.0) if multi_label else 1.5), multi_label=multi_label
    )
    assert "Metrics are those of the network before calibration" in text
    assert ("ROC AUC of the calibrated" in text) == (not multi_label)
    assert "before calibration" not in card()  # There is none.
