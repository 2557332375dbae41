import pytest

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError
from data_pipeline.sources import open_sources, parse_sources


def test_parse():
    assert parse_sources(" manifest:/a.csv, phantom:infant:films=5:seed=1,") == [
        ("manifest", "/a.csv"),
        ("phantom", "infant:films=5:seed=1"),
    ]
    assert parse_sources("") == parse_sources(" , ") == []


def test_a_comma_in_a_path(tmp_path):
    assert parse_sources(r"folder:/a\,b/c,manifest:/d\,e.csv") == [
        ("folder", "/a,b/c"),
        ("manifest", "/d,e.csv"),
    ]
    (tmp_path / "com,ma").mkdir()
    (tmp_path / "com,ma" / "a.png").write_bytes(b"")
    (path,) = open_sources(f"folder:{tmp_path}/com\\,ma").image_path
    assert path == f"{tmp_path}/com,ma/a.png"
    with pytest.raises(DataError, match=r"'ma' is not of the form .* comma in a path as \\,"):
        parse_sources(f"folder:{tmp_path}/com,ma")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/data/a.csv", "'/data/a.csv' is not of the form source:place"),
        ("manifest:", "'manifest:' is not of the form"),
        ("manifset:/a.csv", "unknown source 'manifset'; there are .*manifest"),
        ("gs://bucket/images", "gs://bucket/images is in an object store.* write manifest:ADDRESS"),
        ("folder:s3://bucket/images", "folder:s3://bucket/images is in an object store"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(DataError, match=message):
        parse_sources(spec)


def test_sources_are_joined_in_order_and_remember_where_they_came_from(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"image_path\n{name}.png\n")
    records = open_sources(f"manifest:{tmp_path}/b.csv,manifest:{tmp_path}/a.csv")
    assert records.image_path.tolist() == [f"{tmp_path}/b.png", f"{tmp_path}/a.png"]
    assert records.source.tolist() == [f"manifest:{tmp_path}/b.csv", f"manifest:{tmp_path}/a.csv"]


def test_nothing_named_says_what_to_set():
    with pytest.raises(DataError, match=r"set config\.data\.train"):
        open_sources(" , ")


def test_a_source_without_images_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("image_path\na.png\n")
    monkeypatch.setitem(ADAPTERS, "empty", lambda place: ADAPTERS["manifest"](place).take([]))
    with pytest.raises(DataError, match="holds no images"):
        open_sources(f"empty:{tmp_path}/a.csv")


def test_the_phantom_brings_all_splits():
    records = open_sources("phantom:infant:films=22")
    assert set(records.split) == {"train", "validation", "test"}
    assert records.has_label.all()
