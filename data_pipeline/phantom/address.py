"""Names of phantom data sets and of single images.

A place names a data set, such as `infant` or `infant:films=2000:seed=1:site=b`. An address names
one image, such as `phantom:infant:seed=1:site=b:split=train:film=12`. It holds everything that the
image depends on, so that any image can be computed anywhere, in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS

DOMAINS = ("infant", "adult")
SITES = ("a", "b", "both")
FREQUENCIES = ("balanced", "rare")
NORMS = ("fixed", "age")
SEVERITIES = ("mixed", "subtle", "obvious")
INFANT_MAX_AGE_MONTHS = 36
_LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Place:
    """What a phantom data set contains.

    Attributes:
      domain: `"infant"` (0 to 36 months) or `"adult"` (18 to 90 years).
      seed: another seed is another set of patients.
      site: hospital of the detector; `"both"` mixes two by patient.
      frequencies: `"balanced"` classes, or some of them `"rare"`.
      severity: of the findings, from 0 (barely visible) to 1.
      dose: detector dose relative to the site's usual one.
      findings: largest number of conditions of an image; each condition after the first occurs in
        half of the patients with a condition.
      norms: `"fixed"`: an enlarged liver or spleen is a finding at every age; `"age"`: only above
        what is normal at the infant's age, see `patients.upper_norm`.
      max_age_months: oldest infant; up to 216 (18 years).
      films: number of training images; validation and test add 20 % and 30 % of it.
      age_missing: share of the images whose age is not recorded.
      label_noise: share of the training images whose label is replaced by another one.
    """

    domain: str
    seed: int = 0
    site: str = "a"
    frequencies: str = "balanced"
    severity: str = "mixed"
    dose: float = 1.0
    findings: int = 1
    norms: str = "fixed"
    max_age_months: int = INFANT_MAX_AGE_MONTHS
    films: int = 2000
    age_missing: float = 0.0
    label_noise: float = 0.0


# Options that change pixels. The others change the list of images and its columns.
_OF_FILM = (
    "seed",
    "site",
    "frequencies",
    "severity",
    "dose",
    "findings",
    "norms",
    "max_age_months",
)

_OPTIONS: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]] = {
    "seed": (int, lambda v: 0 <= v <= _LARGEST_SEED, f"a whole number from 0 to {_LARGEST_SEED}"),
    "site": (str, SITES.__contains__, "one of " + ", ".join(SITES)),
    "frequencies": (str, FREQUENCIES.__contains__, "one of " + ", ".join(FREQUENCIES)),
    "severity": (str, SEVERITIES.__contains__, "one of " + ", ".join(SEVERITIES)),
    "dose": (float, lambda v: 1e-6 <= v <= 1e4, "a factor from 1e-6 to 10000"),
    "findings": (int, lambda v: 1 <= v <= 3, "a whole number from 1 to 3"),
    "norms": (str, NORMS.__contains__, "one of " + ", ".join(NORMS)),
    "max_age_months": (int, lambda v: 1 <= v <= 216, "a whole number from 1 to 216"),
    "films": (int, lambda v: 1 <= v <= 10_000_000, "a whole number from 1 to 10000000"),
    "age_missing": (float, lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    "label_noise": (float, lambda v: 0 <= v <= 1, "a share from 0 to 1"),
}


@dataclasses.dataclass(frozen=True)
class Address:
    """One image: `film` counts from 0 within its split."""

    place: Place
    split: str
    film: int

    def __str__(self) -> str:
        return f"{address_prefix(self.place, self.split)}{self.film}"


def address_prefix(place: Place, split: str) -> str:
    """An address without its number, which is the same for a whole split."""
    parts = [f"phantom:{place.domain}"]
    for name in _OF_FILM:
        value = getattr(place, name)
        if name in ("seed", "site") or value != getattr(Place(place.domain), name):
            parts.append(f"{name}={value:g}" if name == "dose" else f"{name}={value}")
    return ":".join([*parts, f"split={split}", "film="])


def parse_place(text: str) -> Place:
    """Reads `infant`, `adult`, or either with options.

    Raises:
      DataError: an unknown domain, option or value; the message lists what is allowed.
    """
    domain, options = _pieces(text, "phantom:" + text)
    return _place(domain, options, tuple(_OPTIONS), "phantom:" + text)


def parse_address(address: str) -> Address:
    """Reads one image's address.

    Raises:
      DataError: it is not the address of an image.
    """
    if not address.startswith("phantom:"):
        raise DataError(f"{address!r} is not a phantom image; expected phantom:infant:...:film=N")
    domain, options = _pieces(address.removeprefix("phantom:"), address)
    split, film = options.pop("split", ""), options.pop("film", "")
    if split not in SPLITS:
        raise DataError(f"{address}: split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not (film.isascii() and film.isdigit() and int(film) < 2**32):
        raise DataError(f"{address}: film is {film!r}; expected film=N, a whole number from 0")
    return Address(_place(domain, options, _OF_FILM, address), split, int(film))


def _pieces(text: str, whole: str) -> tuple[str, dict[str, str]]:
    domain, *pieces = text.split(":")
    if domain not in DOMAINS:
        raise DataError(f"{whole}: {domain!r} is not a phantom; expected {', '.join(DOMAINS)}")
    options = {}
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals:
            raise DataError(f"{whole}: {piece!r} is not of the form name=value, such as films=100")
        if name in options:
            raise DataError(f"{whole}: {name} is given twice; give it once")
        options[name] = value
    return domain, options


def _place(domain: str, options: dict[str, str], allowed: tuple[str, ...], whole: str) -> Place:
    values = {}
    for name, text in options.items():
        if name not in allowed:
            raise DataError(f"{whole}: unknown option {name!r}; expected {', '.join(allowed)}")
        if name in ("max_age_months", "norms") and domain == "adult":
            raise DataError(f"{whole}: {name} is for phantom:infant alone; leave it out")
        kind, is_allowed, expected = _OPTIONS[name]
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise DataError(f"{whole}: {name} is {text!r}; expected {expected}")
        values[name] = value
    place = Place(domain, **values)
    if place.norms == "age" and place.findings > 1:
        raise DataError(f"{whole}: norms=age has one finding an image; leave findings out")
    return place
