"""Lengths that follow from the data."""

import pytest

from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from data_pipeline.errors import UserError
from infantxray.runs import settings
from infantxray.stage_two.budget import by_data, images_to_draw
from infantxray.training.hooks import Moment, Progress, Validation


def test_more_labels_train_longer_but_each_is_seen_less_often():
    counts = [1, 40, 200, 2000, 4000, 70_000]
    images = [images_to_draw(n) for n in counts]
    assert images == sorted(images)
    assert images[:2] == [12_800, 12_800]
    assert [round(n, -3) for n in images[2:5]] == [22_000, 47_000, 59_000]
    assert images[-1] == 8 * 70_000
    epochs = [n / count for n, count in zip(images, counts, strict=True)]
    assert epochs == sorted(epochs, reverse=True)


def test_floor_and_ceiling():
    budget = by_data(40, 100, 32)
    assert (budget.total_steps, budget.least_steps, budget.early_stopping_evals) == (400, 200, 4)
    assert 12 * budget.eval_every_steps >= 400 > 11 * budget.eval_every_steps
    assert by_data(40, 99, 32).early_stopping_evals == 0


def test_images_of_teachers_count():
    assert by_data(40, 100, 32, drawn_by_teachers=6400).total_steps == 200
    with pytest.raises(UserError, match="teachers draw 12,800 images"):
        by_data(40, 100, 32, drawn_by_teachers=12_800)


def test_rounds_share_the_images():
    assert by_data(40, 100, 32, rounds=2).total_steps == 200
    assert "give 2 times 200 steps" in by_data(40, 100, 32, rounds=2).text
    with pytest.raises(UserError, match=r"\.rounds"):
        by_data(40, 100, 64, rounds=201)


@pytest.mark.parametrize(("least", "stopped"), [(0, 30), (45, 50)])
def test_nothing_stops_before_the_floor(least, stopped):
    progress = Progress(data={})

    class State:
        eval_variables = None

    hook = Validation(lambda m: True, lambda v: {"f1": 0.5}, "f1", False, 2, least)
    for step in range(10, 100, 10):
        hook(Moment(step, State(), progress, None, step == 100))
        if progress.finished:
            break
    assert step == stopped


def test_only_stage_two_may_leave_its_length_open():
    config = finetune_config.get_config("best")
    settings.check(config)
    assert settings.is_by_data(config)
    config = pretrain_config.get_config()
    config.train_steps = 0
    with pytest.raises(settings.ConfigError, match="exactly one of"):
        settings.check(config)
