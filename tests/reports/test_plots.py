import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import plots, study_plots


def test_a_label_has_the_same_colour_in_all_panels():
    points = [[(1, 0.2), (2, 0.3)]]
    figure = study_plots.learning(
        {
            "stage one": {"l1": points, "masked hog": points},
            "stage two": {"random": points, "l1": points, "masked hog": points},
        }
    )
    first, second = (
        {line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes
    )
    assert list(second.values()) == [plots.colour(i) for i in range(3)]
    assert {label: second[label] for label in first} == first


def test_encoders_have_no_order_and_so_no_line_between_them():
    row = dict.fromkeys(study_plots._SCORES, Estimate(0.5, 0.1, 0.4, 0.6))
    (axes,) = study_plots.performance({"vgg19": row, "resnet50": row}).axes
    assert [line.get_linestyle() for line in axes.lines] == ["None"] * len(axes.lines)
    assert len(axes.containers) == len(study_plots._SCORES)


def test_learning_curves_start_where_they_start():
    history = [{"step": step, "train/loss": 1.0 / step} for step in (50, 100, 150)]
    figure = plots.learning_curves(history)
    assert figure.axes[0].get_xlim() == (50, 150)
    points = [[(20, 0.2), (40, 0.3)]]
    figure = study_plots.learning({"stage two": {"full": points}})
    assert figure.axes[0].get_xlim() == (20, 40)


def test_curves_are_drawn_over_all_images_of_known_class():
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=80)
    score = rng.random(80) + 0.5 * label
    label[:5] = -1
    nothing = np.full(80, np.nan)
    run = Predictions(
        ("a", "b"), np.stack([1 - score, score], 1), label, nothing, nothing, np.arange(80)
    )
    area = np.trapezoid(
        study_plots._roc(*[p for _, *p in plots.each_class(run)][1]), study_plots._GRID
    )
    assert area == pytest.approx(roc_auc_score(label[5:] == 1, score[5:]), abs=0.01)
    (axes,) = plots.roc_figure(run).axes
    assert len(axes.lines) == 3  # Two classes and chance.
