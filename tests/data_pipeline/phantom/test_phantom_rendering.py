"""Films: the same bytes always, what a radiologist expects of them, and the truth about them."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.phantom import CLASSES, VERSION, open_phantom, render, render_raw, truth
from data_pipeline.phantom.address import parse_address
from data_pipeline.phantom.patients import film_at

ROOT = Path(__file__).resolve().parents[3]
FILMS = tuple(
    f"phantom:{place}:split=train:film={film}"
    for place in ("infant:seed=0:site=a", "infant:seed=3:site=b:dose=0.01", "adult:seed=0:site=b")
    for film in (0, 5, 12, 19)
)


def digest(films, size=96):
    total = hashlib.sha256()
    for address in films:
        total.update(render_raw(address, size).astype("<u2").tobytes())
    return total.hexdigest()


def find(place, label, view=None, n=1):
    """Addresses of the first films with this condition, and view if given."""
    records = open_phantom(f"{place}:films=400")
    rows = (records.label == label) & (records.split == "train")
    if view:
        rows &= records.view == view
    return list(records.image_path[rows][:n])


def test_version_1_is_frozen():
    # These bytes belong to the version's name: whoever changes the films raises VERSION.
    assert VERSION == "phantom v1"
    films = [address.rpartition("=")[0] + f"={i}" for address in FILMS[::4] for i in range(44)]
    assert digest(films, 48) == ("aad278fc64082f5431ead860a9376beb6ecb10b1a4c0547baa5f1dfa4bb5c93d")


@pytest.mark.parametrize("disabled", ["", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"])
def test_another_process_in_another_order_gives_the_same_bytes(disabled):
    # The second process does without the wide vector units, as on an older machine.
    code = (
        "import sys\n"
        "from data_pipeline.phantom import render_raw\n"
        "import hashlib\n"
        "for a in sys.argv[1:]: "
        "print(hashlib.sha256(render_raw(a, 96).astype('<u2').tobytes()).hexdigest())\n"
    )
    films = FILMS[::-1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *films],
        cwd=ROOT,
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [digest([address]) for address in films]


def test_threads_give_the_same_bytes():
    films = FILMS * 6
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda a: digest([a], 64), films))
    assert parallel == [digest([a], 64) for a in films]


@pytest.mark.parametrize("size", [16, 33, 64, 100, 224])
def test_any_size(size):
    for address in FILMS[::5]:
        raw, film = render_raw(address, size), render(address, size)
        assert raw.shape == film.shape == (size, size)
        assert raw.dtype == np.uint16
        assert film.dtype == np.uint8
        assert raw.max() <= 4095
        assert (film == np.rint(raw / 4095 * 255)).all()


def test_too_small_a_film_is_refused():
    with pytest.raises(ValueError, match="at least 16 pixels wide; got 8"):
        render(FILMS[0], 8)


def test_sizes_show_the_same_picture():
    for address in FILMS[:4]:
        large = render(address, 256).astype(float).reshape(64, 4, 64, 4).mean((1, 3))
        small = render(address, 64).astype(float)
        assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.98


def test_bone_is_white_and_gas_is_black():
    for address in find("infant", "normal", n=8) + find("adult", "normal", n=4):
        film, masks = render(address, 128).astype(float), truth(address, 128).masks
        soft = masks["liver"] & ~masks["ribs"] & ~masks["spine"]
        assert film[masks["spine"]].mean() > film[soft].mean() + 5
        assert film[masks["lungs"]].mean() < film[soft].mean() - 20
        gas, dense = masks["stomach gas"], masks["spine"] | masks["ribs"]
        around = np.zeros_like(gas)
        for shift in (-5, 5):
            around |= np.roll(gas, shift, 0) | np.roll(gas, shift, 1)
        near = around & masks["body"] & ~gas & ~dense & ~masks["lungs"] & ~masks["bowel gas"]
        assert film[gas & ~dense].mean() < film[near].mean()


def test_boxes_are_within_the_film_and_only_where_there_is_a_finding():
    records = open_phantom("infant:films=220")
    for address, label in zip(records.image_path[:220], records.label[:220], strict=True):
        boxes = truth(address, 96).boxes
        assert len(boxes) == (label != "normal")
        for box in boxes:
            assert box.label == label
            assert 0 <= box.x0 < box.x1 <= 96
            assert 0 <= box.y0 < box.y1 <= 96


def without_the_finding(address):
    """The same patient, age and film, with a condition drawn anew (rare classes): normal, if so."""
    other = address.replace(":split", ":frequencies=rare:split")
    return other if film_at(parse_address(other)).label == "normal" else None


def pairs(label, view=None, severity="obvious", n=6):
    """Films with a condition beside the same patient's film without it."""
    found = []
    for address in find(f"infant:severity={severity}", label, view, n=60):
        normal = without_the_finding(address)
        if normal and film_at(parse_address(normal)).view == film_at(parse_address(address)).view:
            found.append((address, normal))
    assert len(found) >= 2
    return found[:n]


def area(address, name):
    return truth(address, 128).masks[name].sum()


@pytest.mark.parametrize(
    ("label", "organ"), [("hepatomegaly", "liver"), ("splenomegaly", "spleen")]
)
def test_enlarged_organs_are_larger(label, organ):
    for ill, well in pairs(label):
        assert area(ill, organ) > 1.2 * area(well, organ)


def test_situs_inversus_is_a_mirror():
    for ill, well in pairs("situs inversus totalis"):
        for organ in ("heart", "liver", "stomach gas"):
            mask = truth(ill, 128).masks
            there = np.flatnonzero(mask[organ].any(0)).mean()
            spine = np.flatnonzero(mask["spine"].any(0)).mean()
            usual = truth(well, 128).masks
            here = np.flatnonzero(usual[organ].any(0)).mean()
            middle = np.flatnonzero(usual["spine"].any(0)).mean()
            assert (there - spine) * (here - middle) < 0, organ


@pytest.mark.parametrize("view", ["supine", "upright"])
def test_free_air_is_darker_than_without(view):
    for ill, well in pairs("aeroperitoneum", view, n=4):
        found = truth(ill, 128).masks["finding"]
        away = truth(ill, 128).masks["body"] & ~found
        with_air, without = render(ill, 128).astype(float), render(well, 128).astype(float)
        change = with_air - without
        assert change[found].mean() < change[away].mean() - 4


@pytest.mark.parametrize("label", ["foreign bodies", "calcification", "mass"])
def test_dense_findings_are_brighter_than_without(label):
    for ill, well in pairs(label, n=4):
        found = truth(ill, 128).masks["finding"]
        away = truth(ill, 128).masks["body"] & ~found
        change = render(ill, 128).astype(float) - render(well, 128)
        assert change[found].mean() > change[away].mean() + 3


def test_air_fluid_levels_are_across_gravity():
    for address in find("infant:severity=obvious", "air-liquid shadow", n=12):
        view = film_at(parse_address(address)).view
        assert view != "supine"
        found = truth(address, 256).masks["finding"].astype(int)
        down, right = np.abs(np.diff(found, axis=0)), np.abs(np.diff(found, axis=1))
        # A fluid level is the longest straight edge of the gas.
        lengths = {"upright": down.sum(1).max(), "decubitus": right.sum(0).max()}
        assert lengths[view] > 0.08 * 256


def test_gas_rises_to_the_right_of_who_lies_on_the_left_side():
    for label in ("normal", "situs inversus totalis"):
        for address in find("infant", label, "decubitus", n=6):
            gas = truth(address, 256).masks["stomach gas"]
            heights = gas.sum(0)[gas.any(0)]
            # Cut off on the film's right, where the fluid is; rounded on its left.
            assert heights[-1] > 2 * heights[0], address


def test_a_constipated_colon_holds_more_stool():
    more = sum(
        area(ill, "stool") > 1.5 * truth(well, 128).masks.get("stool", np.zeros(1)).sum()
        for ill, well in pairs("constipation")
    )
    assert more == len(pairs("constipation"))


def test_severity_makes_findings_larger():
    for label in ("mass", "hepatomegaly", "splenomegaly", "aeroperitoneum", "constipation"):
        obvious = find("infant:severity=obvious", label, n=6)
        subtle = [address.replace("obvious", "subtle") for address in obvious]
        larger = [
            area(a, "finding") > area(b, "finding") for a, b in zip(obvious, subtle, strict=True)
        ]
        assert np.mean(larger) >= 0.8, label


def test_less_dose_is_more_noise():
    address = FILMS[0]

    def noise(dose):
        film = address.replace(":split", f":dose={dose}:split")
        clean = render_raw(address.replace(":split", ":dose=10000:split"), 128).astype(float)
        return (render_raw(film, 128) - clean)[40:90, 40:90].std()

    assert noise(0.001) > 3 * noise(0.1) > 3 * noise(10) > 0


def test_two_sites_show_one_patient_differently():
    a = render(FILMS[0], 128)
    b = render(FILMS[0].replace("site=a", "site=b"), 128)
    assert (a != b).mean() > 0.5
    masks = [truth(x, 128).masks for x in (FILMS[0], FILMS[0].replace("site=a", "site=b"))]
    assert (masks[0]["liver"] == masks[1]["liver"]).all()


def test_all_classes_in_both_domains_and_all_ages():
    for place in ("adult", "infant:max_age_months=216"):
        records = open_phantom(f"{place}:films=66")
        assert set(records.label[:66]) == set(CLASSES)
        for address in records.image_path[:66]:
            film = render(address, 48)
            assert film.std() > 10
