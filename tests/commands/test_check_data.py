"""configs/check_data.py: what is wrong with the data is found, named and counted."""

import csv
import dataclasses
import os
import re

import numpy as np
import pytest
from PIL import Image

from configs.check_data import get_config
from data_pipeline import audit
from data_pipeline.errors import UserError
from data_pipeline.manifest import read_manifest
from data_pipeline.sources import open_sources
from infantxray.commands.check_data import run
from infantxray.evaluation.shortcuts import TOGETHER, shortcuts


def image(seed, shape=(64, 64)):
    """An image unlike any other: smooth shapes with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(30, 220, (9, 9), np.uint8))
    fine = random.normal(0, 6, shape)
    return np.clip(np.asarray(coarse.resize(shape[::-1])) + fine, 0, 255).astype(np.uint8)


def build(folder, rows, shapes=None):
    """A manifest of `(name, patient, label, split, pixels)`."""
    folder.mkdir(exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "patient_id", "label", "split", "age_months"))
        for i, (name, patient, label, split, pixels) in enumerate(rows):
            if pixels is not None:
                Image.fromarray(pixels).save(folder / name)
            writer.writerow((name, patient, label, split, i % 50))
    return f"manifest:{folder / 'manifest.csv'}"


def clean(n=40, shape=lambda i: (64, 64)):
    labels = ("mass", "normal")
    splits = ("train", "train", "train", "train", "validation", "validation", "test", "test")
    return [
        (f"{i}.png", f"P{i}", labels[i % 2], splits[i % 8], image(i, shape(i))) for i in range(n)
    ]


def check(spec, workdir, **changes):
    """Problems as dictionaries, and the exit code."""
    config = get_config()
    config.data.train = spec
    config.num_processes = 1
    for key, value in changes.items():
        setattr(config.data if key in config.data else config, key, value)
    code = 0
    try:
        run(config, str(workdir))
    except SystemExit as stop:
        code = stop.code
    with (workdir / "problems.csv").open(errors="surrogateescape") as file:
        return list(csv.DictReader(file)), code


def test_clean_data_pass(tmp_path):
    problems, code = check(build(tmp_path / "a", clean()), tmp_path / "out")
    assert code == 0
    # Random images are not alike.
    assert {problem["kind"] for problem in problems} <= {"rare class", "not judged"}
    assert [p["severity"] for p in problems if p["kind"] == "not judged"] == ["note"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no errors" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "http" not in page.replace("http-equiv", "")  # Needs nothing else.
    radiographs = read_manifest(tmp_path / "out" / "films.csv")
    assert len(radiographs) == 40
    assert set(radiographs.split) == {"train", "validation", "test"}


def test_a_patient_on_two_sides_is_named(tmp_path):
    rows = clean()
    rows[6] = ("6.png", "P0", "mass", "test", rows[6][4])
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out")
    assert code == 1
    (message,) = {p["message"] for p in problems if p["kind"] == "patient on two sides"}
    assert message == "patient 'P0' is in test and in train"
    assert {p["image_path"].rsplit("/")[-1] for p in problems if p["severity"] == "error"} == {
        "0.png",
        "6.png",
    }


def test_a_copy_on_two_sides_is_found_though_it_was_changed(tmp_path):
    rows = clean()
    smaller = Image.fromarray(rows[0][4]).resize((48, 48))
    changed = np.clip(np.asarray(smaller) * 0.8 + 20, 0, 255).astype(np.uint8)
    rows.append(("copy.png", "Q", "mass", "test", changed))
    rows.append(("again.png", "P1", "normal", "train", rows[1][4]))
    rows.append(("odd.png", "P2", "normal", "train", rows[2][4]))
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out")
    assert code == 1
    by_kind = {p["kind"]: p["message"] for p in problems}
    assert "near duplicate" in by_kind["image on two sides"]
    assert "patients P0, Q" in by_kind["image on two sides"]
    assert "two labels" in by_kind
    assert by_kind["repeats"].endswith(": 2")


def test_files_of_two_sources_are_one_line(tmp_path):
    source = build(tmp_path / "a", clean(16))
    folder = f"folder:{tmp_path / 'a'}:labels=none"
    problems, code = check(f"{source},{folder}", tmp_path / "out", patient_ids="source")
    assert code == 1
    (listed,) = {p["message"] for p in problems if p["kind"] == "listed twice"}
    assert listed.startswith("files that are listed more than once: 16, such as ")
    assert listed.endswith("name each file in one source")
    assert not any("two patients" in p["message"] for p in problems)
    (refused,) = {p["message"] for p in problems if p["kind"] == "cannot be divided"}
    assert f"it is listed by {folder.removesuffix(':labels=none')}" in refused
    assert "patient_ids" not in refused


def test_the_other_stage_must_not_show_the_test_patients(tmp_path):
    rows = clean()
    other = [("x.png", "P7", "", "", rows[7][4]), *(
        (f"o{i}.png", f"O{i}", "", "", image(1000 + i)) for i in range(12)
    )]  # fmt: skip
    spec = build(tmp_path / "b", other)
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out", other_stage=spec)
    assert code == 1
    kinds = {p["kind"]: p["message"] for p in problems if p["severity"] == "error"}
    assert kinds["patient on two sides"] == "patient 'P7' is in other stage and in test"
    assert "image on two sides" in kinds
    read_manifest(tmp_path / "out" / "films.csv")
    # The same training patients in both stages are as it should be.
    problems, code = check(
        build(tmp_path / "a", rows), tmp_path / "out2", other_stage=build(tmp_path / "a", rows)
    )
    assert code == 0


def test_images_of_the_other_stage_are_not_in_the_manifest(tmp_path):
    """Used as a manifest again, adults would join the infants in training."""
    other = build(tmp_path / "b", [(f"o{i}.png", f"O{i}", "", "", image(99 + i)) for i in range(9)])
    check(build(tmp_path / "a", clean()), tmp_path / "out", other_stage=other)
    radiographs = read_manifest(tmp_path / "out" / "films.csv")
    assert len(radiographs) == 40
    assert set(radiographs.split) == {"train", "validation", "test"}
    with (tmp_path / "out" / "films.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["role"] == row["split"] and row["width"] == "64" for row in rows)


def test_names_of_files_need_not_be_utf8(tmp_path):
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / os.fsdecode(b"f\xe9%d.png" % i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(path)
    problems, code = check(f"folder:{tmp_path / 'images'}", tmp_path / "out")
    assert code == 0
    (row, *_) = (p for p in problems if p["kind"] == "no patient id")
    assert os.path.exists(row["image_path"])
    radiographs = read_manifest(tmp_path / "out" / "films.csv")
    assert all(map(os.path.exists, radiographs.image_path))


def refusals(problems):
    return [(p["severity"], p["message"]) for p in problems if p["kind"].startswith("refused")]


def test_what_stage_two_refuses_is_an_error(tmp_path):
    rows = [row for row in clean() if row[3] != "test"]
    spec = build(tmp_path / "a", rows)
    problems, code = check(spec, tmp_path / "out", test_fraction=0.0)
    (found,) = refusals(problems)
    assert code == 1
    assert found[0] == "error"
    assert found[1].startswith("stage two refuses these images: no image is left for test; raise")
    assert found[1].endswith("(stage one alone can use them)")

    rows = [
        *clean(),
        ("x.png", "X", "rare", "train", image(77)),
        ("y.png", "Y", "odd", "test", image(78)),
    ]
    problems, code = check(build(tmp_path / "b", rows), tmp_path / "out")
    assert code == 1
    assert any("the class 'rare' has one patient" in text for _, text in refusals(problems))
    # Whoever names the classes leaves the others out on purpose.
    problems, code = check(
        build(tmp_path / "b", rows), tmp_path / "out", classes=("mass", "normal")
    )
    assert (refusals(problems), code) == ([], 0)


def test_what_may_be_meant_for_stage_one_is_a_warning(tmp_path):
    unlabelled = [(name, patient, "", split, pixels) for name, patient, _, split, pixels in clean()]
    one_class = [
        (name, patient, "mass", split, pixels) for name, patient, _, split, pixels in clean()
    ]
    for i, (rows, why) in enumerate(
        ((unlabelled, ""), (one_class, "all labelled training images"))
    ):
        problems, code = check(build(tmp_path / str(i), rows), tmp_path / "out")
        assert code == 0
        found = refusals(problems)
        assert [severity for severity, _ in found] == ["warning"] * bool(why)
        assert all(why in text and "stage one alone can use them" in text for _, text in found)


def test_a_set_of_one_image_is_of_no_use_to_either_stage(tmp_path):
    spec = build(tmp_path / "a", [("a.png", "P", "mass", "", image(1))])
    problems, code = check(spec, tmp_path / "out")
    assert code == 1
    found = refusals(problems)
    assert {severity for severity, _ in found} == {"error"}
    assert any(
        "stage one refuses these images: no image is left for val" in text for _, text in found
    )
    assert any("stage two refuses these images: all labelled" in text for _, text in found)
    assert not any("alone can use them" in text for _, text in found)


def test_an_image_of_several_findings_counts_for_each(tmp_path):
    rows = [(n, p, f"{label}|effusion" if i % 3 else label, s, x)
            for i, (n, p, label, s, x) in enumerate(clean(40))]  # fmt: skip
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out", labels="multi")
    assert code == 0
    rare = [p["message"] for p in problems if p["kind"] == "rare class"]
    assert rare[0].endswith("too few to say much: effusion (7), mass (5)")  # Not normal.
    (both,) = [p["message"] for p in problems if p["kind"] == "spelling"][:1]
    assert "labelled both normal and with a finding, such as 'effusion|normal'" in both
    page = (tmp_path / "out" / "report.html").read_text()
    assert "An image with several findings counts once for each finding." in page


def test_images_without_patient_and_spellings_are_named(tmp_path):
    rows = clean()
    rows[0] = ("0.png", "", "mass", "train", rows[0][4])
    rows[2] = ("2.png", "p3", "Mass", "train", rows[2][4])
    rows[8] = ("8.png", "P8", "Mass", "train", rows[8][4])
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out")
    assert code == 0
    by_kind = {}
    for problem in problems:
        by_kind.setdefault(problem["kind"], []).append(problem)
    (ids,) = by_kind["no patient id"]
    assert (
        "manifest.csv: 1 of 40 images have no patient id and are divided image by image"
        in ids["message"]
    )
    assert ids["image_path"].endswith("0.png")
    messages = {problem["message"] for problem in by_kind["spelling"]}
    assert any("'P3' and 'p3'" in message for message in messages)
    assert any("'Mass' and 'mass'" in message for message in messages)


def test_unreadable_images_are_errors_unless_skipped(tmp_path):
    rows = [*clean(), ("none.png", "N", "mass", "train", None)]
    spec = build(tmp_path / "a", rows)
    problems, code = check(spec, tmp_path / "out")
    assert code == 1
    (problem,) = (p for p in problems if p["kind"] == "unreadable")
    assert problem["message"].endswith("none.png: the file does not exist")
    _, code = check(spec, tmp_path / "out", on_error="skip")
    assert code == 0


def test_shortcuts_raise_an_alarm(tmp_path):
    rows = clean(80, lambda i: (64, 64) if i % 2 else (64, 64 + 16 * (i % 3)))
    problems, code = check(build(tmp_path / "a", rows), tmp_path / "out")
    assert code == 0
    messages = [p["message"] for p in problems if p["kind"] == "shortcut"]
    assert any("differences of aspect ratio tell 'mass'" in message for message in messages)
    assert re.search(r'<td class="[a-z ]*alarm', (tmp_path / "out" / "report.html").read_text())


def test_outliers_are_listed(tmp_path):
    base = image(5)
    rows = [(f"{i}.png", f"P{i}", "mass", "train", base // 2 + image(i) // 2) for i in range(60)]
    rows[3] = ("3.png", "P3", "mass", "train", 255 - rows[3][4])
    rows[4] = ("4.png", "P4", "mass", "train", np.full((64, 64), 9, np.uint8))
    rows[5] = ("5.png", "P5", "mass", "train", image(5, (64, 640)))
    rows[6] = ("6.png", "P6", "mass", "train", rows[6][4].astype(np.uint16) * 257)
    problems, _ = check(build(tmp_path / "a", rows), tmp_path / "out")
    found = {
        p["image_path"].rsplit("/")[-1]: p["message"].split(":")[0]
        for p in problems
        if p["kind"] == "outlier" and "aspect" not in p["message"]
    }
    assert found["3.png"] == "perhaps inverted"
    assert found["4.png"] == "almost without contrast"
    assert found["5.png"] == "unusual size"
    assert found["6.png"] == "16 bits, unlike the others"


def six_kinds(folder):
    """Six kinds of images without a common mean; the fourth image is inverted."""
    rows = []
    for i in range(120):
        kind = ("hand", "chest", "skull", "knee", "spine", "foot")[i % 6]
        pixels = image(i % 6) // 2 + image(100 + i) // 2
        rows.append((f"{i}.png", f"P{i}", kind, "", 255 - pixels if i == 3 else pixels))
    return build(folder, rows)


def test_inverted_images_are_found_among_those_of_their_label(tmp_path):
    problems, _ = check(six_kinds(tmp_path / "a"), tmp_path / "out")
    (found,) = [p for p in problems if p["message"].startswith("perhaps inverted")]
    assert found["image_path"].endswith("/3.png")
    assert not [p for p in problems if p["kind"] == "not judged"]


def test_inverted_images_are_found_among_those_of_their_body_part(tmp_path):
    records = open_sources(six_kinds(tmp_path / "a"))
    kinds, unlabelled = records.label, records.replace(label=np.full(120, "", object))
    images = audit.measure(list(records.image_path), num_processes=1)
    found, not_judged = audit.outliers(images, unlabelled)
    assert (3, "perhaps inverted") not in found
    assert not_judged[0].startswith("whether an image is inverted was not judged for 120 of 120 ")
    known = dataclasses.replace(images, body_part=kinds)
    found, not_judged = audit.outliers(known, unlabelled)
    assert [row for row, what in found if what == "perhaps inverted"] == [3]
    assert not_judged == []


def test_what_is_not_judged_is_said(tmp_path):
    rows = [
        (f"{i}.png", f"P{i}", "mass", "train", image(5) // 2 + image(i) // 2) for i in range(12)
    ]
    problems, _ = check(build(tmp_path / "a", rows), tmp_path / "out")
    (note,) = [p for p in problems if p["kind"] == "not judged"]
    assert note["severity"] == "note"
    assert note["message"].startswith(
        "whether an image is inverted was not judged for 12 of 12 ima"
    )
    assert "not judged for 12 of 12" in (tmp_path / "out" / "report.html").read_text()


def with_ages(folder, ages, column="age_months", n=40):
    spec = build(folder, clean(n))
    path = folder / "manifest.csv"
    lines = path.read_text().splitlines()
    rows = [line.rpartition(",")[0] + f",{age}" for line, age in zip(lines[1:], ages, strict=True)]
    path.write_text("\n".join([lines[0].replace("age_months", column), *rows]) + "\n")
    return spec


@pytest.mark.parametrize("ages", [["83.3"] * 40, ["7"] + [""] * 39, ["0.1"] * 40])
def test_ages_that_are_all_equal(tmp_path, ages):
    """The histogram of the page had more bins than numbers between its ends."""
    _, code = check(with_ages(tmp_path / "a", ages), tmp_path / "out")
    assert code == 0
    assert "Age, years" in (tmp_path / "out" / "report.html").read_text()


def test_ages_far_from_the_others_are_named(tmp_path):
    ages = [i % 30 for i in range(38)] + [720, 480]
    problems, code = check(with_ages(tmp_path / "a", ages), tmp_path / "out")
    found = [p for p in problems if p["kind"] == "age"]
    assert code == 0
    assert "(480, 720 months): 2 images, such as" in found[0]["message"]
    assert {p["image_path"].rpartition("/")[2] for p in found} == {"38.png", "39.png"}
    # From infancy to school, and adults.
    for spread in (range(0, 200, 5), range(200, 1000, 20)):
        problems, _ = check(with_ages(tmp_path / "a", spread), tmp_path / "out")
        assert not [p for p in problems if p["kind"] == "age"]
    problems, _ = check(with_ages(tmp_path / "a", [0] * 4 + [300] * 36), tmp_path / "out")
    messages = {p["message"] for p in problems if p["kind"] == "age"}
    assert any("where no other is below a year: 4 images" in message for message in messages)


def test_a_column_of_ages_that_is_not_used_is_named(tmp_path):
    spec = with_ages(tmp_path / "a", range(40), column="Age")
    problems, _ = check(spec, tmp_path / "out")
    (found,) = [p for p in problems if p["kind"] == "age"]
    assert "no age is read from Age; name a column age_months" in found["message"]


def test_a_workdir_that_cannot_be_written_is_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "measure", None)
    (tmp_path / "file").write_text("")
    config = get_config()
    config.data.train = build(tmp_path / "a", clean())
    with pytest.raises(
        UserError, match=r"file/out cannot be written to \(Not a directory\); choose"
    ):
        run(config, str(tmp_path / "file" / "out"))


def test_names_that_a_spreadsheet_would_run_are_text(tmp_path):
    rows = clean()
    rows[6] = ("6.png", "=HYPERLINK(1)", "@mass", "test", rows[6][4])
    rows[0] = ("0.png", "=HYPERLINK(1)", "@mass", "train", rows[0][4])
    check(build(tmp_path / "a", rows), tmp_path / "out")
    for name in ("problems.csv", "films.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells)
        assert not any(cell.startswith(tuple("=+-@")) for cell in cells)
    assert "=HYPERLINK(1)" in read_manifest(tmp_path / "out" / "films.csv").patient_id


def test_different_images_are_not_the_same():
    def measured(images):
        n = len(images)
        ones = np.ones(n)
        return audit.Images(
            reason=np.array([""] * n, object),
            note=np.array([""] * n, object),
            body_part=np.array([""] * n, object),
            digest=np.array([bytes([i]) for i in range(n)], object),
            height=ones, width=ones, bits=ones, brightness=ones, contrast=ones, border=ones,
            thumbnail=np.stack(images),
        )  # fmt: skip

    thumbnails = [image(seed, (32, 32)) for seed in range(60)]
    assert audit.same_images(measured(thumbnails)) == []
    lighter = np.clip(thumbnails[7] * 0.7 + 60, 0, 255).astype(np.uint8)
    assert audit.same_images(measured([*thumbnails, lighter])) == [[7, 60]]
    assert audit.same_images(measured([*thumbnails, lighter]), compare=np.arange(61) < 60) == []


def test_the_area_under_the_curve_of_noise_is_no_alarm():
    random = np.random.default_rng(0)
    n = 400
    radiographs = audit.Images(
        reason=np.array([""] * n, object), note=np.array([""] * n, object),
        body_part=np.array([""] * n, object), digest=np.arange(n),
        height=random.integers(200, 300, n).astype(float),
        width=random.integers(200, 300, n).astype(float), bits=np.full(n, 8.0),
        brightness=random.random(n), contrast=random.random(n), border=random.random(n),
        thumbnail=np.zeros((n, 32, 32), np.uint8),
    )  # fmt: skip
    labels = np.array(["a", "b"], object)[random.integers(0, 2, n)]
    patients = np.array([f"p{i}" for i in range(n)], object)
    found = shortcuts(radiographs, labels, patients)
    assert {one.measure for one in found} >= {"height", "brightness", TOGETHER}
    assert not any(one.alarm for one in found)
    assert all(0.5 <= one.auc < 0.62 for one in found)
    radiographs.brightness[labels == "a"] += 2
    best = {
        one.measure: one for one in shortcuts(radiographs, labels, patients) if one.label == "a"
    }
    assert best["brightness"].alarm
    assert best["brightness"].auc == pytest.approx(1.0)
    assert best[TOGETHER].alarm


def test_real_repeats_are_found(real_images, tmp_path):
    problems, code = check(f"manifest:{real_images / 'children' / 'manifest.csv'}", tmp_path)
    assert code == 0
    assert sum(p["kind"] == "repeats" for p in problems) == 26
    with (real_images / "children" / "manifest.csv").open() as file:
        marked = [row for row in csv.DictReader(file) if "exact duplicate" in row["notes"]]
    assert len(marked) == 26


def test_nothing_in_the_working_folder_is_executed(tmp_path, monkeypatch):
    spec = build(tmp_path / "data", clean(6))
    here = tmp_path / "here"
    here.mkdir()
    ran = tmp_path / "ran"
    for name in ("socket", "pickle", "numpy", "PIL"):
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})")
    monkeypatch.chdir(here)
    monkeypatch.setattr(audit, "_CHUNK", 1)  # So that two processes have something to do.
    check(spec, tmp_path / "work", num_processes=2)
    assert not ran.exists(), ran.read_text()
