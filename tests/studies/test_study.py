"""The command `study`, its tables and its page, from runs that were never trained."""

import copy
import html.parser
import json
import logging
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent)]

import fake_study  # noqa: E402

from data_pipeline import splits  # noqa: E402
from data_pipeline.errors import DataError, UserError  # noqa: E402
from data_pipeline.manifest import Records  # noqa: E402
from data_pipeline.manifest_writing import write_manifest  # noqa: E402
from infantxray.commands import study  # noqa: E402
from infantxray.evaluation.predictions import Predictions  # noqa: E402
from infantxray.features.baselines import MAJORITY, RIDGE  # noqa: E402
from infantxray.reports import comparisons, plots, study_plots  # noqa: E402
from infantxray.reports import study_report as report  # noqa: E402
from infantxray.reports import study_sections as sections  # noqa: E402
from infantxray.runs import workdir  # noqa: E402
from infantxray.studies import plan, results, runner  # noqa: E402

# In one process, so that fixtures are made once.
pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished study with two label fractions, and its report."""
    folder = tmp_path_factory.mktemp("study")
    config = fake_study.small_config()
    config.study.label_fractions = (0.5, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.checkpoints, "is_finished", marked)
        planned = fake_study.finish_all(config, folder)
        fake_study.write_report(config, folder, planned, {})
    return config, folder, planned


def marked(folder):
    return Path(folder, "finished").exists()


@pytest.fixture
def fake(monkeypatch):
    """Runs finish at once, except those in the returned set; a report lists the failures."""
    broken = set()
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    ready = {}

    def run_all(todo, planned, finished, runner):
        if not ready:
            ready["split"] = fake_study.divide(fake_study.small_config())
            ready["classes"] = tuple(sorted(set(ready["split"].train.label)))
        failed = {}
        for run in todo:
            if run.index in broken:
                failed[run.index] = "a reason <b>"
            else:
                fake_study.finish(run, ready["split"], ready["classes"])
                finished.add(run.index)
        return failed

    def write(folder, planned, failed, **settings):
        path = Path(folder, "report.html")
        path.write_text(json.dumps(failed))
        return str(path)

    monkeypatch.setattr(runner, "run_all", run_all)
    monkeypatch.setattr(report, "write", write)
    return broken


@pytest.fixture
def drafts(monkeypatch):
    """Figures are drawn but not rendered, which takes most of the time of a report."""

    def save(folder, name, draw, words=()):
        draw()
        path = Path(folder, f"{name}.svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
        return str(path), str(path)

    monkeypatch.setattr(plots, "save", save)


def one_encoder():
    config = fake_study.small_config()
    config.study.encoders = ("shufflenet",)
    config.study.frozen = False
    return config


def rows(folder, name):
    return fake_study.read_csv(folder / "tables" / f"{name}.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"given_splits": "ignore", "test_fraction": 0.0}, "no image is left for test"),
        ({"classes": ("x",)}, "no training image carries"),
    ],
)
def test_what_stage_two_refuses_stops_a_study_before_stage_one(tmp_path, fake, settings, message):
    config = one_encoder()
    config.data.update(settings)
    with pytest.raises(DataError, match=message):
        study.run(config, str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_table_1_holds_the_mean_and_sd_of_the_seeds(written):
    _, folder, planned = written
    table = {row["encoder"]: row for row in rows(folder, "table1_encoders")}
    for encoder in ("shufflenet", "mobilenet_v2"):
        accuracies = []
        for run in planned.runs:
            kind = (run.task, run.encoder, run.name, run.label_fraction)
            if kind == ("finetune", encoder, "full", 1.0):
                scores = json.loads(Path(run.folder, "metrics.json").read_text())
                accuracies.append(scores["accuracy"])
        assert len(accuracies) == 2
        row = table[encoder]
        assert float(row["accuracy"]) == pytest.approx(np.mean(accuracies), abs=1e-6)
        assert float(row["accuracy_sd"]) == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)
        assert float(row["accuracy_low"]) < np.mean(accuracies) < float(row["accuracy_high"])
    assert table["resnet50: the paper, on other data"]["accuracy"] == "0.8249"
    assert table["resnet50: the paper, on other data"]["f1"] == ""


def test_baselines_stand_in_the_tables(written):
    config, folder, _ = written
    split = fake_study.divide(config)
    (majority,) = [
        row for row in rows(folder, "table1_encoders") if row["encoder"].startswith("majority")
    ]
    labels, counts = np.unique(split.train.label.astype(str), return_counts=True)
    accuracies = {label: (split.test.label == label).mean() for label in labels}
    best = [accuracies[label] for label in labels[counts == counts.max()]]
    assert float(majority["accuracy"]) in [pytest.approx(value) for value in best]
    assert float(majority["roc_auc"]) == 0.5
    error = np.abs(split.test.age_months - split.train.age_months.mean()).mean()
    assert float(majority["age_mae_months"]) == pytest.approx(error, rel=1e-4)
    for name in ("table2_ablation", "frozen_features", "label_fractions"):
        assert any("ridge on 32 x 32 pixels" in row.values() for row in rows(folder, name))


def test_table_2_has_all_variants_and_the_papers(written):
    _, folder, _ = written
    table = rows(folder, "table2_ablation")
    ours = [row for row in table if row["encoder"] == "shufflenet"]
    assert [row["variant"] for row in ours] == ["without pretraining", "without APN", "full"]
    assert [bool(row["age_mae_months"]) for row in ours] == [True, False, True]
    paper = [row["accuracy"] for row in table if "paper" in row["encoder"]]
    assert paper == ["0.7797", "0.8004", "0.8249"]


def test_differences_are_those_of_table_2(written):
    _, folder, _ = written
    accuracy = {
        (row["encoder"], row["variant"]): float(row["accuracy"])
        for row in rows(folder, "table2_ablation")
    }
    table = rows(folder, "differences")
    assert len(table) == 2 * 2 * 3  # Label fractions, two others, two encoders and their mean.
    found = {(row["difference"], row["encoder"]): row for row in table if row["labels"] == "100%"}
    for other in ("without pretraining", "without APN"):
        parts = []
        for encoder in ("shufflenet", "mobilenet_v2"):
            row = found[f"full − {other}", encoder]
            parts.append(accuracy[encoder, "full"] - accuracy[encoder, other])
            assert float(row["accuracy"]) == pytest.approx(parts[-1], abs=1e-9)
            assert float(row["accuracy_p_holm"]) >= float(row["accuracy_p"])
        mean = found[f"full − {other}", "mean of all encoders"]
        assert float(mean["accuracy"]) == pytest.approx(np.mean(parts), abs=1e-9)


def test_a_seed_that_one_side_lacks_is_left_out_and_said(written, monkeypatch):
    config, _, planned = written
    lost = next(
        run
        for run in planned.runs
        if (run.task, run.encoder, run.name) == ("finetune", "shufflenet", "without_apn")
        and run.label_fraction == 1.0
    )
    monkeypatch.setattr(
        plan.checkpoints, "is_finished", lambda folder: marked(folder) and folder != lost.folder
    )
    found = results.read_results(planned, config.data.patient_ids)
    table = comparisons.Comparisons(found, {}, samples=50, seed=0).differences()
    assert "alone): shufflenet, without APN, 100% of the labels" in table.caption
    kept = {}
    for name in ("full", "without_apn"):
        model = found.model("shufflenet", name)
        (kept_one,) = [
            found
            for run, found in zip(model.runs, model.predictions, strict=True)
            if run.seed != lost.seed
        ]
        kept[name] = (kept_one.probabilities.argmax(1) == kept_one.label).mean()
    (row,) = [row for row in table.rows if row[:3] == ["full − without APN", "shufflenet", "100%"]]
    assert row[3].estimate.mean == pytest.approx(kept["full"] - kept["without_apn"])


def unfinished(monkeypatch, planned, *lost):
    """Marks runs of stage two with all labels as not finished: `(encoder, variant, seed)`."""
    folders = {
        run.folder
        for run in planned.runs
        if run.task == "finetune"
        and run.label_fraction == 1.0
        and (run.encoder, run.name, run.seed) in lost
    }
    assert len(folders) == len(lost)
    monkeypatch.setattr(
        plan.checkpoints, "is_finished", lambda folder: marked(folder) and folder not in folders
    )


@pytest.mark.parametrize(
    "lost",
    [
        # Seed 0 of one encoder and seed 1 of the other are no pair.
        [("shufflenet", "without_apn", 0), ("mobilenet_v2", "without_apn", 1)],
        # One encoder is not all encoders.
        [("shufflenet", "without_apn", 0), ("shufflenet", "without_apn", 1)],
    ],
)
def test_means_are_over_all_encoders_with_the_same_seeds(written, monkeypatch, lost):
    config, _, planned = written
    unfinished(monkeypatch, planned, *lost)
    found = results.read_results(planned, config.data.patient_ids)
    table = comparisons.Comparisons(found, {}, samples=50, seed=0).differences()
    means = [row[:3] for row in table.rows if row[1] == "mean of all encoders"]
    assert ["full − without pretraining", "mean of all encoders", "100%"] in means
    assert ["full − without APN", "mean of all encoders", "100%"] not in means
    assert "shufflenet, without APN, 100% of the labels" in table.caption


def test_captions_say_whose_labels_are_kept(written, monkeypatch):
    config, folder, planned = written
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)

    def caption(plan):
        found = results.read_results(plan, config.data.patient_ids)
        return comparisons.Comparisons(found, {}, samples=50, seed=0).differences().caption

    assert "are one draw, the same for all models" in caption(planned)
    config = copy.deepcopy(config)
    config.study.label_draw = "seed"
    assert "drawn anew for each seed" in caption(study.make_plan(config, str(folder)))


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """Six seeds that take turns with three stages one, and what the report compares."""
    config = one_encoder()
    config.study.frozen = True
    config.study.seeds, config.study.pretrain_seeds = (0, 1, 2, 3, 4, 5), (0, 3, 1)
    folder = tmp_path_factory.mktemp("turns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.checkpoints, "is_finished", marked)
        planned = fake_study.finish_all(config, folder)
        found = results.read_results(planned, config.data.patient_ids)
    tables = comparisons.Comparisons(found, {}, samples=200, seed=0)
    blind = dict.fromkeys((MAJORITY, RIDGE), found.models[0].predictions[0])
    tables._references = {1.0: blind}
    return tables


def test_frozen_encoders_have_the_seeds_of_stage_one(turns):
    table = turns.frozen()
    assert all(len(model.runs) == 3 for model in turns.results.frozen)
    assert "Frozen: 3 seeds of stage one" in table.caption
    for model in turns.results.frozen:  # Each of them is another stage one.
        independent = turns.resampling.metrics(model.predictions)
        assert turns.sampled(model).estimate("roc_auc") == independent.estimate("roc_auc")


def test_a_caption_counts_the_seeds_that_are_finished(written, monkeypatch):
    config, _, planned = written
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    found = results.read_results(planned, config.data.patient_ids)
    assert "over 2 seeds" in comparisons.Comparisons(found, {}, 50, 0).intervals()
    unfinished(monkeypatch, planned, ("shufflenet", "without_apn", 1))
    found = results.read_results(planned, config.data.patient_ids)
    assert "over up to 2 seeds" in comparisons.Comparisons(found, {}, 50, 0).intervals()


def test_parts_of_the_test_set_have_the_intervals_of_the_whole(turns):
    model = turns.results.model("shufflenet", "full")
    everyone = [("everyone", np.ones(len(turns.results.images), bool))]
    table = sections._groups(turns, "age_bands", "By age", "Age", everyone, model)
    whole = [turns.sampled(model).estimate(name) for name in sections.TESTED]
    assert table.rows[0][3:7] == whole
    assert "resampled within each" in table.caption


def test_fewer_labels_make_a_table_and_a_figure(written):
    _, folder, _ = written
    table = rows(folder, "label_fractions")
    assert {row["labels"] for row in table} == {"50%", "100%"}
    assert (folder / "figures" / "label_fractions.svg").exists()


def test_parts_of_the_test_set_add_up(written):
    config, folder, _ = written
    images = len(fake_study.divide(config).test)
    for name in ("age_bands", "conditions"):
        table = rows(folder, name)
        assert sum(int(row["images"]) for row in table) == images
        assert all("(few)" in row["patients"] for row in table if int(row["images"]) < 10)


def test_every_table_is_there_in_three_forms(written):
    _, folder, _ = written
    names = {path.stem for path in (folder / "tables").iterdir()}
    assert names >= {"table1_encoders", "table2_ablation", "differences", "frozen_features"}
    for name in names:
        latex = (folder / "tables" / f"{name}.tex").read_text(encoding="utf-8")
        columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", latex)[1]
        for line in latex.splitlines():
            if line.endswith("\\\\"):
                assert line.replace("\\&", "").count("&") == len(columns) - 1
        assert not re.search(r"[±−–×]", latex)
        assert re.search(r"(?<!\\)[_%#]", latex.split("\\toprule")[1].split("\\label")[0]) is None
        lines = (folder / "tables" / f"{name}.md").read_text(encoding="utf-8").splitlines()
        assert len({line.count("|") for line in lines[2:]}) == 1


def test_every_figure_is_there_in_both_forms_with_something_on_it(written):
    _, folder, _ = written
    pictures = sorted((folder / "figures").glob("*.png"))
    assert len(pictures) == 9
    for path in pictures:
        assert np.asarray(Image.open(path).convert("L")).std() > 3, path.name
        for name in (f"{path.stem}.svg", f"{path.stem}_dark.svg"):
            assert path.with_name(name).read_text(encoding="utf-8").count("<") > 50


class Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [v for k, v in attributes.items() if k in ("src", "srcset")]
        self.links += [attributes["href"]] if tag == "a" else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in ("meta", "img", "source", "br", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(written):
    _, folder, _ = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = Parser()
    found.feed(text)
    assert found.sources
    kinds = {source.partition(",")[0] for source in found.sources}
    assert kinds == {"data:image/png;base64", "data:image/svg+xml;base64"}
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert "http" not in re.sub(r'data:image/[^"]*', "", text)
    for what in (
        "data fingerprint",
        "jax",
        ">Summary</h2>",
        "<li>Baselines: ridge",
        "prefers-color-scheme: dark",
        "@media print",
    ):
        assert what in text


def test_hparams_are_there_for_every_tuned_cell(written):
    _, folder, planned = written
    tuned = [run for run in planned.runs if run.task == "finetune"]
    assert len(list((folder / "hparams").iterdir())) == len(tuned)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    run = tuned[-1]
    events = EventAccumulator(str(folder / "hparams" / f"run{run.index:04d}")).Reload()
    assert (
        "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )
    scores = json.loads(Path(run.folder, "metrics.json").read_text())
    (event,) = events.Tensors("test/accuracy")
    assert tensor_util.make_ndarray(event.tensor_proto) == pytest.approx(scores["accuracy"])


@pytest.mark.usefixtures("drafts")
def test_hparams_are_those_of_the_runs_when_a_study_has_grown(tmp_path, monkeypatch):
    """A larger plan numbers its runs anew."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    config = one_encoder()
    for seeds in ((0,), (0, 1)):
        config.study.seeds = seeds
        planned = study.make_plan(config, str(tmp_path))
        split = fake_study.divide(config)
        for run in planned.runs:
            if not run.is_finished():
                fake_study.finish(run, split, tuple(sorted(set(split.train.label))))
        fake_study.write_report(config, tmp_path, planned, {})
    tuned = {f"run{run.index:04d}": run for run in planned.runs if run.task == "finetune"}
    assert {path.name for path in (tmp_path / "hparams").iterdir()} == set(tuned)
    for name, run in tuned.items():
        scores = json.loads(Path(run.folder, "metrics.json").read_text())
        (event,) = EventAccumulator(str(tmp_path / "hparams" / name)).Reload().Tensors("test/f1")
        assert tensor_util.make_ndarray(event.tensor_proto) == pytest.approx(scores["f1"])


def test_another_set_of_images_is_refused(written, tmp_path, monkeypatch):
    config, _, _ = written
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    config = config.copy_and_resolve_references()
    config.study.frozen = False
    planned = study.make_plan(config, str(tmp_path))
    split = fake_study.divide(config)
    classes = tuple(sorted(set(split.train.label)))
    tuned = [run for run in planned.runs if run.task == "finetune"]
    fake_study.finish(tuned[0], split, classes)
    shorter = splits.Split(split.train, split.validation, split.test.take(np.arange(5)))
    fake_study.finish(tuned[1], shorter, classes)
    with pytest.raises(UserError, match="predictions for other images"):
        results.read_results(planned, "shared")


@pytest.mark.parametrize("what", ["label", "classes", "age"])
def test_runs_of_data_that_changed_are_refused(written, tmp_path, monkeypatch, what):
    """The same images, of which one was labelled anew between two runs."""
    config, _, _ = written
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    config = config.copy_and_resolve_references()
    config.study.frozen = False
    planned = study.make_plan(config, str(tmp_path))
    split = fake_study.divide(config)
    classes = tuple(sorted(set(split.train.label)))
    tuned = [run for run in planned.runs if run.task == "finetune"]
    fake_study.finish(tuned[0], split, classes)
    label, ages = split.test.label.copy(), split.test.age_months.copy()
    if what == "label":
        label[0] = next(name for name in classes if name != label[0])
    elif what == "age":
        ages[0] += 1
    else:
        classes = (*classes, "z")
    test = split.test.replace(label=label, age_months=ages)
    fake_study.finish(tuned[1], splits.Split(split.train, split.validation, test), classes)
    with pytest.raises(UserError, match="data has changed since"):
        results.read_results(planned, "shared")


def test_nothing_finished_is_nothing_to_report(tmp_path, fake):
    planned = study.make_plan(one_encoder(), str(tmp_path))
    with pytest.raises(UserError, match="nothing to report"):
        results.read_results(planned, "shared")


def test_a_study_runs_reports_and_is_done(tmp_path, fake, capsys, caplog):
    caplog.set_level(logging.INFO)
    config = one_encoder()
    study.run(config, str(tmp_path))
    assert (tmp_path / "report.html").exists()
    assert "to run" in capsys.readouterr().out
    study.run(config, str(tmp_path))
    assert "to run" not in capsys.readouterr().out
    assert "0 to do now" in caplog.text


def test_failures_are_told_and_the_rest_is_reported(tmp_path, fake):
    config = one_encoder()
    planned = study.make_plan(config, str(tmp_path))
    fake.update(c.index for c in planned.runs if c.name == "without_apn" and c.seed == 1)
    with pytest.raises(SystemExit) as ended:
        study.run(config, str(tmp_path))
    assert ended.value.code == 1
    told = json.loads((tmp_path / "report.html").read_text())
    assert list(told.values()) == ["a reason <b>"]
    fake.clear()
    study.run(config, str(tmp_path))
    assert json.loads((tmp_path / "report.html").read_text()) == {}


def test_nothing_but_failures_makes_no_report(tmp_path, fake, caplog):
    caplog.set_level(logging.INFO)
    fake.update(range(100))
    with pytest.raises(SystemExit) as ended:
        study.run(one_encoder(), str(tmp_path))
    assert ended.value.code == 1
    assert "nothing to report" in caplog.text
    assert not (tmp_path / "report.html").exists()


def test_the_page_tells_failures_first(tmp_path, written):
    _, _, planned = written
    path = str(tmp_path / "report.html")
    failed = {3: "a reason <b>"}
    parts = {
        "sentences": ["a sentence"], "parts": [None], "runs": planned.runs, "settings": {"seed": 0},
    }  # fmt: skip
    report.write_study_page(path, title="title", subtitle="", failed=failed, **parts)
    text = Path(path).read_text(encoding="utf-8")
    assert f"Failed twice: 1 of {len(planned.runs)} runs" in text
    assert "a reason &lt;b&gt;" in text
    assert text.index("Failed twice") < text.index("a sentence")
    report.write_study_page(path, title="title", subtitle="", failed={}, **parts)
    assert "Failed" not in Path(path).read_text(encoding="utf-8")


def test_selected_cells_make_no_report_until_all_are_finished(tmp_path, fake, caplog):
    caplog.set_level(logging.INFO)
    config = one_encoder()
    last = len(study.make_plan(config, str(tmp_path)).runs) - 1
    config.study.cells = str(last)
    with pytest.raises(UserError, match=f"run {last} needs run"):
        study.run(config, str(tmp_path))
    config.study.cells = f"0-{last - 1}"
    study.run(config, str(tmp_path))
    assert "no report yet" in caplog.text
    assert not (tmp_path / "report.html").exists()
    config.study.cells = str(last)
    study.run(config, str(tmp_path))
    assert (tmp_path / "report.html").exists()


def test_a_dry_run_leaves_nothing(tmp_path, fake, capsys):
    config = one_encoder()
    config.study.dry_run = True
    study.run(config, str(tmp_path / "study"))
    assert "finetune" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


def test_a_study_may_grow_and_its_settings_may_not_change(tmp_path, fake):
    config = one_encoder()
    config.study.seeds = (0,)
    study.run(config, str(tmp_path))
    config.study.seeds = (0, 1)
    study.run(config, str(tmp_path))
    config.finetune.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer\.learning_rate .0\.001 -> 0\.5"):
        study.run(config, str(tmp_path))


def test_who_deletes_a_stage_one_is_told_what_starts_from_it(tmp_path, fake, caplog):
    config = one_encoder()
    study.run(config, str(tmp_path))
    assert "which it starts from" not in caplog.text
    stages_one = list((tmp_path / "pretrain" / "shufflenet" / "l1").iterdir())
    for folder in stages_one:
        (folder / "checkpoints" / "100").mkdir(parents=True)
    config.pretrain.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match="was run with other settings") as error:
        study.run(config, str(tmp_path))
    for name in ("without_apn", "full"):
        assert str(tmp_path / "finetune" / "shufflenet" / name) in str(error.value)
    assert "without_pretraining" not in str(error.value)
    for folder in stages_one:
        shutil.rmtree(folder)
    study.run(config, str(tmp_path))
    assert "run 4 is finished and run 0, which it starts from, is not" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("changes", "full.pretrain.objective=denoise"), ("pretrain_seeds", (1,))],
)
def test_a_variant_from_another_stage_one_is_refused(tmp_path, fake, setting, value):
    """Its finished stage two began with the former one."""
    config = one_encoder()
    study.run(config, str(tmp_path / "study"))
    (tmp_path / "study").rename(tmp_path / "moved")
    study.run(config, str(tmp_path / "moved"))  # Moved, and otherwise as it was.
    config.study[setting] = value
    with pytest.raises(UserError, match=r"(full|without_apn).*run with other settings: pretrained"):
        study.run(config, str(tmp_path / "moved"))


def test_a_folder_of_another_task_is_refused_and_left_as_it_is(tmp_path, fake):
    workdir.prepare(str(tmp_path), {"task": "finetune", "seed": 3})
    (tmp_path / "metrics.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds a run of another task, finetune"):
        study.run(one_encoder(), str(tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.usefixtures("drafts")
def test_without_ages_the_report_names_the_variant_that_was_not_run(tmp_path, monkeypatch, capsys):
    """A manifest without ages: the age head has nothing to learn."""
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    config = one_encoder()
    records = fake_study.divide(config)
    everyone = Records.concatenate([records[name] for name in splits.SPLITS])
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, everyone.replace(age_months=np.full(len(everyone), np.nan)))
    config.data.train = f"manifest:{manifest}"
    config.study.dry_run = True
    study.run(config, str(tmp_path / "study"))
    assert "without_apn is identical to full" in capsys.readouterr().out
    planned = study.make_plan(config, str(tmp_path / "study"), has_ages=False)
    split = fake_study.divide(config)
    for run in planned.runs:
        fake_study.finish(run, split, tuple(sorted(set(split.train.label))))
    fake_study.write_report(config, tmp_path / "study", planned, {})
    table = rows(tmp_path / "study", "differences")
    assert {row["difference"] for row in table} == {"full − without pretraining"}
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert "“without APN” is identical to “full” and was not run" in page


@pytest.mark.usefixtures("drafts")
def test_ages_alone_and_one_seed(tmp_path, monkeypatch):
    """No conditions, one seed: what cannot be computed is left out, not zero."""
    config = one_encoder()
    config.study.seeds = (0,)
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    planned = study.make_plan(config, str(tmp_path))
    split = fake_study.divide(config)
    for run in planned.runs:
        fake_study.finish(run, split, ())
    fake_study.write_report(config, tmp_path, planned, {})
    (row, *_) = rows(tmp_path, "table1_encoders")
    assert row["accuracy"] == ""
    assert float(row["age_mae_months"]) > 0
    assert row["age_mae_months_sd"] == ""
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "One seed" in page
    # CSV always has the same columns; people are shown those that say something.
    for text in (page, (tmp_path / "tables" / "table1_encoders.md").read_text(encoding="utf-8")):
        assert "Age MAE, months" in text
        assert "ROC AUC" not in text


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("known", [("mass",), ()])
def test_a_test_set_of_one_condition_or_without_labels_is_reported(tmp_path, monkeypatch, known):
    config = one_encoder()
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    planned = study.make_plan(config, str(tmp_path))
    split = fake_study.divide(config)
    classes = tuple(sorted(set(split.train.label)))
    if known:
        test = split.test.take(np.isin(split.test.label, known))
    else:
        test = split.test.replace(label=np.full(len(split.test), "", dtype=object))
    split = splits.Split(split.train, split.validation, test)
    for run in planned.runs:
        fake_study.finish(run, split, classes)
    fake_study.write_report(config, tmp_path, planned, {})
    row = rows(tmp_path, "table1_encoders")[0]
    assert row["roc_auc"] == ""
    assert float(row["age_mae_months"]) > 0
    assert bool(row["accuracy"]) == bool(known)


@pytest.mark.parametrize(("metric", "expected"), [("age_mae_months", "b"), ("roc_auc", "a")])
def test_details_are_of_the_encoder_that_validation_prefers(monkeypatch, metric, expected):
    """By the metric that checkpoints are chosen by, in its own direction."""
    values = {"a": [7.0, 8.0, None], "b": [9.0, 5.0, 7.5]}
    monkeypatch.setattr(
        report, "history", lambda run: [{f"validation/{metric}": v} for v in values[run]] + [{}]
    )
    models = {name: types.SimpleNamespace(name=name, runs=[name]) for name in values}
    if metric == "roc_auc":
        values |= {"a": [0.7, 0.9, None], "b": [0.8, 0.8, 0.8]}
    found = types.SimpleNamespace(
        encoders=list(values), reference="full", models=list(models.values()),
        model=lambda encoder, variant: models[encoder],
    )  # fmt: skip
    assert report._focus(found, metric).name == expected


def test_the_line_of_chance_is_the_mean_prevalence():
    """Of a blind guess, the precision of a finding is its prevalence."""
    rng = np.random.default_rng(0)
    findings = (rng.random((200, 3)) < [0.05, 0.1, 0.3]).astype(np.float32)
    findings[:20, 0] = np.nan
    nothing = np.full(200, np.nan)
    run = Predictions(
        ("a", "b", "c"), rng.random((200, 3)), np.full(200, -1), nothing, nothing,
        np.arange(200), findings,
    )  # fmt: skip
    axes = study_plots.curves({"model": [run]}).axes[1]
    (line,) = (line for line in axes.lines if line.get_color() == "#999999")
    assert line.get_ydata()[0] == pytest.approx(np.nanmean(findings, axis=0).mean())


@pytest.mark.usefixtures("drafts")
def test_a_study_of_several_findings_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.checkpoints, "is_finished", marked)
    config = one_encoder()
    config.labels = "multi"
    config.study.frozen = True
    config.data.train = "phantom:infant:films=120:findings=2"
    planned = fake_study.finish_all(config, tmp_path)
    kinds = {run.task: run.settings for run in planned.runs}
    assert kinds["finetune"]["labels"] == kinds["probe"]["labels"] == "multi"
    assert "labels" not in kinds["pretrain"]
    path = fake_study.write_report(config, tmp_path, planned, {})
    page = Path(path).read_text()
    assert "Confusion matrices" not in page
    assert "By condition" in page
    assert "Labels mapped: Mass → mass (3)." in page
    found = results.read_results(planned, "shared")
    assert all(
        run.multi_label for model in (*found.models, *found.frozen) for run in model.predictions
    )
