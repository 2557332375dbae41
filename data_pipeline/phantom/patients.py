"""Patients and their images: the patient, age, position and condition of image `i`.

Patients come in blocks of eleven with 22 images (one to four each), so that image `i` is found
without computing its predecessors.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from data_pipeline.cells import join_findings
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.phantom.address import DOMAINS, Address, Place, address_prefix, parse_place

CLASSES = (
    "normal",
    "aeroperitoneum",
    "mass",
    "intussusception",
    "air-liquid shadow",
    "foreign bodies",
    "constipation",
    "calcification",
    "splenomegaly",
    "hepatomegaly",
    "situs inversus totalis",
)
_FILMS_OF_PATIENT = (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4)
_BLOCK = sum(_FILMS_OF_PATIENT)
# Per mille of the patients; an invented long tail, not a prevalence from any hospital.
_RARE = (480, 20, 40, 60, 90, 60, 160, 20, 25, 35, 10)
_SPLIT_SHARE = {"train": 1.0, "validation": 0.2, "test": 0.3}
_YEAR = 12.0
_ADULT_AGES = (18 * _YEAR, 90 * _YEAR)
_SEVERITY_RANGE = {"mixed": (0.0, 1.0), "subtle": (0.0, 0.3), "obvious": (0.7, 1.0)}

# Purposes of random streams: one number each, so that no two draws share a stream.
_STREAM_BLOCK, _STREAM_RECORD, STREAM_PATIENT, STREAM_FILM, STREAM_NOISE, _STREAM_ALSO = range(6)
# Conditions that can be drawn beside any other: they do not rearrange the bowel.
_COMBINE = (
    "aeroperitoneum",
    "foreign bodies",
    "calcification",
    "splenomegaly",
    "hepatomegaly",
    "situs inversus totalis",
)


@dataclasses.dataclass(frozen=True)
class Film:
    """Everything that is decided before anatomy is drawn.

    Attributes:
      address: address of the image.
      patient: number of the patient within the split.
      visit: which image of this patient, from 0.
      age_months, sex: at the image; `"F"` or `"M"`.
      view: `"supine"`, `"upright"` or `"decubitus"` (lying on the left side).
      label: one of `CLASSES`, always the truth.
      also: further conditions, if several may combine.
      within_norm: if norms depend on the age: the condition of an enlarged organ that is normal for
        the age; the label is then `normal`.
      severity: 0 (barely visible) to 1 (obvious); without meaning for normal images.
      site: `"a"` or `"b"`.
      dose: relative to the site's usual dose, with the image's own chance in it.
    """

    address: Address
    patient: int
    visit: int
    age_months: float
    sex: str
    view: str
    label: str
    severity: float
    site: str
    dose: float
    also: tuple[str, ...] = ()
    within_norm: str = ""

    @property
    def enlarged(self) -> tuple[str, ...]:
        """The conditions that the size of liver and spleen shows."""
        return (*self.findings, self.within_norm)

    @property
    def findings(self) -> tuple[str, ...]:
        """All conditions of the image, `normal` among them."""
        return (self.label, *self.also)


def stream(address: Address, purpose: int, *numbers: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone.

    The frequencies, severity, dose and site of the place are left out on purpose, so that the same
    patients have images with another dose or at another site.
    """
    place = address.place
    words = (
        place.seed,
        DOMAINS.index(place.domain),
        place.max_age_months,
        SPLITS.index(address.split),
        purpose,
        *numbers,
    )
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def upper_norm(age_months: float, place: Place) -> float:
    """The largest enlargement of liver or spleen that is normal, on the scale of severity.

    It rises with the age: an organ that is enlarged for a newborn is normal for the oldest infant.
    The rule is invented. It makes the label depend on both size and age.
    """
    return age_months / place.max_age_months


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


@lru_cache(maxsize=64)
def _block(address: Address) -> tuple[Film, ...]:
    """The 22 images of one block; `address` is that of its first image."""
    place, number = address.place, address.film // _BLOCK
    rng = stream(address, _STREAM_BLOCK, number)
    counts = rng.permutation(_FILMS_OF_PATIENT)
    if place.frequencies == "balanced":
        conditions = rng.permutation(len(CLASSES))
    else:
        conditions = np.searchsorted(np.cumsum(_RARE), rng.integers(sum(_RARE), size=11), "right")
    films: list[Film] = []
    for i, (count, condition) in enumerate(zip(counts, conditions, strict=True)):
        patient = number * len(counts) + i
        label = CLASSES[condition]
        # Drawn one stream a patient: a switch that changes the class changes nothing else.
        rng = stream(address, _STREAM_BLOCK, number, i)
        sex = "FM"[rng.integers(2)]
        site = "ab"[rng.integers(2)]
        ages = _ages(rng, place, int(count))
        also = _also(address, label, number, i)
        for visit in range(count):
            horizontal_beam = rng.random() < 0.5
            decubitus = rng.random() < 0.3
            severity = _between(rng, *_SEVERITY_RANGE[place.severity])
            dose = place.dose * 4.0 ** _between(rng, -0.5, 0.5)
            if label == "air-liquid shadow" or horizontal_beam:
                view = "decubitus" if decubitus else "upright"
            else:
                view = "supine"
            within = label if _is_normal_at(ages[visit], label, severity, place) else ""
            films.append(
                Film(
                    address=dataclasses.replace(address, film=number * _BLOCK + len(films)),
                    patient=patient,
                    visit=visit,
                    age_months=ages[visit],
                    sex=sex,
                    view=view,
                    label="normal" if within else label,
                    severity=severity,
                    site=site if place.site == "both" else place.site,
                    dose=dose,
                    also=also,
                    within_norm=within,
                )
            )
    return tuple(films)


def _is_normal_at(age_months: float, label: str, severity: float, place: Place) -> bool:
    by_age = place.norms == "age" and label in ("hepatomegaly", "splenomegaly")
    return by_age and severity <= upper_norm(age_months, place)


def _also(address: Address, label: str, *patient: int) -> tuple[str, ...]:
    """Further conditions of a patient; each comes with a probability of one half."""
    most = address.place.findings - 1
    if not most or label == CLASSES[0]:
        return ()
    rng = stream(address, _STREAM_ALSO, *patient)
    others = [_COMBINE[i] for i in rng.permutation(len(_COMBINE)) if _COMBINE[i] != label]
    return tuple(others[: int((rng.random(most) < 0.5).sum())])


def _ages(rng: np.random.Generator, place: Place, count: int) -> list[float]:
    """Ages at the images of one patient, months, rising, in steps of a hundredth."""
    youngest, oldest = (0.0, float(place.max_age_months))
    if place.domain == "adult":
        youngest, oldest = _ADULT_AGES
    span = (oldest - youngest) / 4
    first = _between(rng, youngest, oldest - span * (count - 1) / 3)
    gaps = [_between(rng, 0.01, 1.0) * span / 3 for _ in range(count - 1)]
    ages = [first]
    for gap in gaps:
        ages.append(ages[-1] + gap)
    return [round(age * 100) / 100 for age in ages]


def film_at(address: Address) -> Film:
    """Patient, age, view and condition of the image at an address."""
    first = dataclasses.replace(address, film=address.film // _BLOCK * _BLOCK)
    return _block(first)[address.film - first.film]


def open_phantom(place: str) -> Records:
    """Lists the images of a phantom data set; none is rendered.

    Args:
      place: what follows `phantom:`, such as `infant` or `infant:films=500:seed=1`.

    Raises:
      DataError: an unknown name or value; the message lists what is allowed.
    """
    parsed = parse_place(place)
    parts = []
    for split, share in _SPLIT_SHARE.items():
        n = max(1, round(parsed.films * share))
        parts.append(_records(parsed, split, n, source=f"phantom:{place}"))
    return Records.concatenate(parts)


def _records(place: Place, split: str, n: int, *, source: str) -> Records:
    films = [f for first in range(0, n, _BLOCK) for f in _block(Address(place, split, first))][:n]
    rng = stream(Address(place, split, 0), _STREAM_RECORD)
    # One random number for each image, whatever the shares: a higher share only adds images.
    age_draw, label_draw, other = rng.random(n), rng.random(n), rng.integers(1, len(CLASSES), n)
    prefix = address_prefix(place, split)
    label = np.asarray([CLASSES.index(f.label) for f in films])
    if split == "train":
        wrong = label_draw < place.label_noise
        label = np.where(wrong, (label + other) % len(CLASSES), label)
    ages = np.asarray([f.age_months for f in films])
    patients = f"{place.domain}{place.max_age_months}-{place.seed}-{split}-"
    return Records.create(
        [f"{prefix}{i}" for i in range(n)],
        source=source,
        patient_id=[f"{patients}{f.patient}" for f in films],
        age_months=np.where(age_draw < place.age_missing, np.nan, ages).tolist(),
        sex=[f.sex for f in films],
        view=[f.view for f in films],
        label=[
            join_findings((CLASSES[i], *(also for also in f.also if i)))
            for i, f in zip(label, films, strict=True)
        ],
        split=[split] * n,
        site=[f.site for f in films],
    )
