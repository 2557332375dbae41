"""GRAZPEDWRI-DX: wrists of children, 16-bit PNG."""

from __future__ import annotations

from data_pipeline.adapters.place import (
    SEXES,
    find_file,
    image_index,
    keep_present,
    number,
    parse_place,
    read_table,
)
from data_pipeline.manifest import Records

_PROJECTIONS = {"1": "AP", "2": "LATERAL"}


def read_grazpedwri(place: str) -> Records:
    """Reads `PATH`: `dataset.csv` and the images at any depth.

    Labelled `fracture` or `no fracture` by `fracture_visible`, where an empty cell means no.

    Raises:
      DataError: the table or every image is missing.
    """
    root, _ = parse_place("grazpedwri", place)
    table = read_table(
        "grazpedwri",
        find_file("grazpedwri", root, "dataset.csv", "*.csv"),
        ("filestem", "patient_id", "age", "?gender", "?projection", "fracture_visible"),
    )
    index = image_index(root, (".png",))
    found = [index.get(f"{stem}.png") for stem in table["filestem"]]
    records = Records.create(
        [at or "" for at in found],
        source=f"grazpedwri:{root}",
        patient_id=[f"graz-{patient}" for patient in table["patient_id"]],
        age_months=[12 * number(age) for age in table["age"]],
        sex=[SEXES.get(sex.lower(), "") for sex in table["gender"]],
        view=[_PROJECTIONS.get(view, view) for view in table["projection"]],
        label=[
            "fracture" if number(visible) == 1 else "no fracture"
            for visible in table["fracture_visible"]
        ],
    )
    return records.take(keep_present("grazpedwri", found))
