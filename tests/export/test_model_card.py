"""The model card, from plain values."""

import pytest

from data_pipeline.decode import (
    DECODER_VERSION,
    RESIZE_MODES,
    Preprocessing,
    greyscale,
    percentiles,
)
from infantxray.export.model_card import model_card
from infantxray.stage_two.trust import Trust

METRICS = {"n": 60, "roc_auc": 0.7, "accuracy": 0.4, "ci95": {"roc_auc": [0.6, 0.8]}}


def card(*, trust=None, multi_label=False, classes=("normal", "mass"), context=(), **preprocessing):
    model = {
        "date": "2026-01-01",
        "encoder": "shufflenet",
        "preprocessing": Preprocessing(64, **preprocessing).to_dict(),
        "classes": list(classes),
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
        context=context,
    )


def test_the_card_speaks_of_what_the_model_predicts_and_reads():
    assert "with 2 findings" in card(multi_label=True)
    assert "with 2 conditions" in card()
    assert "also reads" not in card()
    ages = card(classes=(), context=("sex=F", "sex=M", "view=AP"))
    assert "The model also reads sex and view." in ages
    for absent in ("Probabilities are", "One condition an image", "Saliency shows"):
        assert absent in card()
        assert absent not in ages


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_card_says_that_its_metrics_are_before_calibration(multi_label):
    text = card(
        trust=Trust(temperature=(1.5, 2.0) if multi_label else 1.5), multi_label=multi_label
    )
    assert "Metrics are those of the network before calibration" in text
    assert ("ROC AUC of the calibrated" in text) == (not multi_label)
    assert "before calibration" not in card()  # There is none.


def test_the_card_is_enough_to_repeat_the_preprocessing():
    text = card()
    black, white = percentiles._SHOWN
    for part in (
        "uint8 `[B, 64, 64, 1]`, 0 to 255, bright = dense",
        f"black at the {black}th percentile of the image, white at the {white}th",
        f"more than {greyscale._MAX_SATURATED:.0%} of".replace("%", " %"),
        f"less than {greyscale._MIN_CONTRAST:.0%} of".replace("%", " %"),
        "MONOCHROME1",
        "| borders | not trimmed |",
        "the longer side to 64 px, the proportions kept; centred on black; bilinear, anti-aliased",
        f"Decoder version {DECODER_VERSION}",
    ):
        assert part in text, part
    assert "| borders | trimmed: " in card(trim_borders=True)
    for mode in RESIZE_MODES:
        assert f"| resize | `{mode}`: " in card(resize=mode)
