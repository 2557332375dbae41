import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import conditions
from data_pipeline import dataset as data
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.doubts import doubtful_spellings
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records
from data_pipeline.phantom import CLASSES as PHANTOM_CLASSES
from data_pipeline.splits import read_split


def settings(**values):
    return DataSettings(**values)


def records(labels=None, ages=None):
    n = len(labels if labels is not None else ages)
    return Records.create(
        [f"/x/{i}.png" for i in range(n)],
        source="s",
        patient_id=[f"p{i}" for i in range(n)],
        label=labels,
        age_months=ages,
    )


def test_preprocessing_is_what_is_set():
    how = settings(image_size=96, resize="crop", trim_borders=True).preprocessing
    assert (how.image_size, how.resize, how.trim_borders) == (96, "crop", True)


def test_open_split_writes_who_went_where(tmp_path, caplog):
    with caplog.at_level("INFO", "data_pipeline"):
        split = data.open_split(settings(train="phantom:infant:films=44"), str(tmp_path))
    again = read_split(tmp_path / "split.csv")
    for role in ("train", "validation", "test"):
        assert len(split[role])
        assert again[role].image_path.tolist() == split[role].image_path.tolist()
        assert f"{len(split[role])} images of" in caplog.text


def test_settings_of_the_split_are_used(tmp_path):
    path = tmp_path / "m.csv"
    rows = [f"{i}.png,p{i},{'ab'[i % 2]}" for i in range(40)]
    path.write_text("image_path,patient_id,label\n" + "\n".join(rows) + "\n")
    base = {"train": f"manifest:{path}", "validation_fraction": 0.25, "test_fraction": 0.1}
    split = data.divide_sources(settings(**base))
    assert [len(split[r]) for r in ("train", "validation", "test")] == [26, 10, 4]
    other = data.divide_sources(settings(**base, split_seed=1))
    assert set(other.test.patient_id) != set(split.test.patient_id)
    (tmp_path / "t.csv").write_text("image_path,patient_id,label\nz.png,z,a\n")
    given = data.divide_sources(settings(**base, test=f"manifest:{tmp_path}/t.csv"))
    assert given.test.patient_id.tolist() == ["z"]
    assert len(given.validation) == 10
    (tmp_path / "t.csv").write_text("image_path,patient_id,label\nz.png,p0,a\n")
    both = {**base, "test": f"manifest:{tmp_path}/t.csv", "validation_fraction": 0.0}
    with pytest.raises(DataError, match="patient 'p0'"):
        data.divide_sources(settings(**both))
    assert len(data.divide_sources(settings(**both, patient_ids="source")).test) == 1


def test_given_splits_can_be_ignored(tmp_path):
    path = tmp_path / "m.csv"
    rows = [f"{i}.png,p{i},a,{'test' if i < 20 else 'train'}" for i in range(40)]
    path.write_text("image_path,patient_id,label,split\n" + "\n".join(rows) + "\n")
    base = {"train": f"manifest:{path}", "validation_fraction": 0.1, "test_fraction": 0.1}
    kept = data.divide_sources(settings(**base))
    assert set(kept.test.patient_id) == {f"p{i}" for i in range(20)}
    cut = data.divide_sources(settings(**base, given_splits="ignore"))
    assert [len(cut[r]) for r in ("train", "validation", "test")] == [32, 4, 4]


def test_spellings_that_may_be_meant_as_one_are_named(tmp_path, caplog):
    path = tmp_path / "m.csv"
    rows = [f"{i}.png,{'Pp'[i % 2]}{i // 2},{('mass', 'Mass', 'b')[i % 3]}" for i in range(30)]
    path.write_text("image_path,patient_id,label\n" + "\n".join(rows) + "\n")
    data.open_split(settings(train=f"manifest:{path}"), str(tmp_path))
    ids, labels = caplog.messages
    assert ids.startswith("patient ids that differ only in spelling are treated as different")
    assert "'P0' and 'p0', 'P1' and 'p1', 'P10' and 'p10' and 12 more" in ids
    assert labels.startswith("labels that differ")
    assert "'Mass' and 'mass'" in labels
    # Ids of two hospitals mean nothing to each other.
    a, b = records(["a"]), records(["b"]).replace(patient_id=np.array(["P0"], object))
    both = Records.concatenate([a, b.replace(source=np.array(["t"], object))])
    assert not list(doubtful_spellings(both.with_patients("source")))
    assert len(list(doubtful_spellings(both))) == 1


def test_describe_counts_what_is_unknown():
    known = records(["a", ""], [1.0, np.nan])
    assert data.describe(known) == ("2 images of 2 patients, 1 without label, 1 without age")
    anonymous = known.replace(patient_id=np.array(["", "p"], dtype=object))
    assert "1 images have no patient id" in data.describe(anonymous)


def test_classes_are_those_found_in_order():
    assert conditions.find_classes(settings(), records(["b", "", "a", "b"])) == ("a", "b")
    some = [PHANTOM_CLASSES[5], PHANTOM_CLASSES[1], PHANTOM_CLASSES[0]]
    assert conditions.find_classes(settings(), records(some)) == tuple(
        PHANTOM_CLASSES[i] for i in (0, 1, 5)
    )
    assert conditions.find_classes(settings(), records(["", ""])) == ()


def test_classes_that_are_set_come_in_their_order_and_the_rest_is_unknown(caplog):
    train = records(["a", "b", "c"])
    with caplog.at_level("INFO", "data_pipeline"):
        assert conditions.find_classes(settings(classes=("c", "a")), train) == ("c", "a")
        assert conditions.find_classes(settings(classes=("c, a",)), train) == ("c", "a")
    assert "taken as unknown: b" in caplog.text
    with pytest.raises(DataError, match=r"names 'd', which no training image carries.*a, b, c"):
        conditions.find_classes(settings(classes=("a", "d")), train)


def test_one_class_is_nothing_to_tell_apart():
    with pytest.raises(DataError, match="all labelled training images are 'a'"):
        conditions.find_classes(settings(), records(["a", "a", ""]))


def labelled_manifest(folder, n=60, changed=""):
    rows = [f"{i}.png,p{i},{'a' if i % 2 else 'b'}\n" for i in range(n)]
    path = folder / "films.csv"
    path.write_text("image_path,patient_id,label\n" + "".join(rows) + changed)
    return f"manifest:{path}"


def test_label_fraction_touches_training_alone(tmp_path):
    train = labelled_manifest(tmp_path)
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    whole = data.open_split(settings(train=train), str(tmp_path / "whole"))
    part = data.open_split(settings(train=train, label_fraction=0.25), str(tmp_path / "part"))
    assert whole.train.has_label.all()
    assert list(part.train.image_path) == list(whole.train.image_path)
    assert 0.2 < part.train.has_label.mean() < 0.3
    assert part.validation.has_label.all()
    assert part.test.has_label.all()
    (tmp_path / "other").mkdir()
    drawn = settings(train=train, label_fraction=0.25, label_seed=1)
    other = data.open_split(drawn, str(tmp_path / "other"))
    assert other.train.has_label.sum() == part.train.has_label.sum()
    assert (other.train.has_label != part.train.has_label).any()


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path):
    config = settings(train=labelled_manifest(tmp_path))
    first = data.open_split(config, str(tmp_path))
    again = data.open_split(config, str(tmp_path))
    assert list(first.test.image_path) == list(again.test.image_path)
    labelled_manifest(tmp_path, changed="new.png,new,a\n")
    with pytest.raises(DataError, match="not what this run began with"):
        data.open_split(config, str(tmp_path))


def test_images_in_another_order_are_not_gone_on_with(tmp_path):
    """What is kept by row, a teacher's answers and the place in the batches, would be wrong."""
    path = labelled_manifest(tmp_path)
    config = settings(train=path)
    data.open_split(config, str(tmp_path))
    manifest = Path(path.removeprefix("manifest:"))
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([header, *reversed(rows)]) + "\n")
    with pytest.raises(DataError, match="another order"):
        data.open_split(config, str(tmp_path))


def test_policies_of_the_reader(tmp_path):
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    images = Records.create([str(tmp_path / "bad.png"), str(tmp_path / "good.png")], source="s")

    def reader(training, **values):
        read = Reader(settings(**values))
        return read.bad_files, read(images, training=training)

    with pytest.raises(DataError):
        reader(True)[1][0]
    bad, source = reader(True, on_error="skip")
    assert source[0]["image"].max() == 9  # The next one.
    assert len(bad) == 1
    bad, source = reader(False, on_error="skip")
    assert source[0]["mask"] == 0
    assert len(bad) == 1


def test_image_files_that_were_replaced_stop_a_resumed_run(tmp_path, caplog):
    train = labelled_manifest(tmp_path)
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(b"content")
    data.open_split(settings(train=train), str(tmp_path))
    caplog.clear()
    os.utime(tmp_path / "5.png", (1, 1))
    data.open_split(settings(train=train), str(tmp_path))
    assert "1 image files were modified since this run began" in caplog.text
    (tmp_path / "5.png").write_bytes(b"another content")
    with pytest.raises(DataError, match=r"1 image files were replaced .* such as \S+/5\.png"):
        data.open_split(settings(train=train), str(tmp_path))


def test_age_statistics():
    mean, std = data.age_statistics(records(ages=[2.0, np.nan, 4.0, 6.0]))
    assert mean == pytest.approx(4.0)
    assert std == pytest.approx(np.std([2, 4, 6]))
    for ages in ([np.nan], [3.0, np.nan], [5.0, 5.0]):
        with pytest.raises(DataError, match=r"set config\.age_head=False"):
            data.age_statistics(records(ages=ages))


def test_the_data_of_a_finished_run_is_compared(tmp_path, caplog):
    path = tmp_path / "m.csv"
    rows = [f"{i}.png,p{i},{'ab'[i % 2]},{'train' if i else 'test'}" for i in range(6)]
    header = "image_path,patient_id,label,split\n"
    path.write_text(header + "\n".join(rows))
    where = settings(train=f"manifest:{path}", validation_fraction=0.0)
    data.open_split(where, str(tmp_path))
    path.write_text(header + "\n".join(reversed(rows)))
    data.check_finished(where, str(tmp_path))  # The order matters only if a run is resumed.
    path.write_text(header + "\n".join(rows).replace("5.png,p5,b", "5.png,p5,a"))
    with pytest.raises(DataError, match="is finished, but the data is not what this run began"):
        data.check_finished(where, str(tmp_path))
    data.check_finished(where, str(tmp_path), labels=False)
    path.unlink()
    with caplog.at_level("INFO", "data_pipeline"):
        data.check_finished(where, str(tmp_path))
    assert "cannot be compared with what it was: manifest" in caplog.text
