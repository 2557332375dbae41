"""Sizes by age and sex: tables from the literature, and what is read off them for one patient.

Lengths in mm, masses in g, ages in months. Three kinds of figures stand here and are marked:

* published: from the source named;
* derived: computed from published ones;
* approximate: set by hand to look right beside the published ones, because no table was at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipeline.phantom.exactmath import cube_root, interpolate, square_root

# Published. Mean craniocaudal dimensions by ultrasound: Konuş et al., AJR 1998;171:1693-1698.
# The first entry is their youngest group (1-3 months). Adult ends are approximate.
_ORGAN_AGES = (2, 5, 8, 21, 47, 71, 95, 119, 143, 167, 190, 240)
_LIVER_MM = (64, 73, 79, 85, 86, 100, 105, 105, 115, 118, 121, 130)
_SPLEEN_MM = (53, 59, 63, 70, 75, 84, 85, 86, 97, 101, 101, 105)
_KIDNEY_MM = (50, 53, 59, 61, 67, 74, 80, 80, 89, 94, 92, 108)

_BySex = dict[str, Sequence[float]]

# Published. Reference masses: ICRP Publication 89 (2002), newborn, 1, 5, 10, 15 years, adult.
_ICRP_AGES = (0, 12, 60, 120, 180, 240)
_LIVER_G: _BySex = {
    "M": (130, 330, 570, 830, 1300, 1800),
    "F": (130, 330, 570, 830, 1300, 1400),
}
_SPLEEN_G: _BySex = {
    "M": (9.5, 29, 50, 80, 130, 150),
    "F": (9.5, 29, 50, 80, 130, 130),
}
_KIDNEYS_G: _BySex = {
    "M": (25, 70, 110, 180, 250, 310),
    "F": (25, 70, 110, 180, 240, 275),
}

# Published. Lengths of the thoracic (T1-T12) and lumbar (L1-L5) spine: Dimeglio and Canavese,
# The growing spine, Eur Spine J 2012;21:64-70. Straight lines between their ages.
_SPINE_AGES = (0, 60, 120, 204)
_THORACIC_MM = {"M": (110, 180, 220, 280), "F": (110, 180, 220, 260)}
_LUMBAR_MM = {"M": (70, 105, 125, 160), "F": (70, 105, 125, 155)}

# Published. Half depth of the trunk in the phantoms of Cristy and Eckerman, ORNL/TM-8381 (1987).
_HALF_DEPTH_MM = (49, 65, 75, 84, 98, 100)

# Approximate. Half width of the abdomen without arms; half the bi-iliac breadth; width of the
# ossified part of a lumbar vertebral body.
_SHAPE_AGES = (0, 12, 36, 60, 120, 180, 240)
_HALF_WIDTH_MM = {
    "M": (54, 76, 86, 93, 113, 140, 162),
    "F": (54, 75, 85, 92, 112, 134, 150),
}
_HALF_PELVIS_MM = {
    "M": (40, 62, 77, 88, 109, 130, 141),
    "F": (40, 62, 77, 88, 109, 132, 141),
}
_VERTEBRA_WIDTH_MM = (13, 20, 26, 29, 36, 42, 47)

# Published. One standard deviation of length for age is 3.8 % at birth and 3.2 to 3.9 % up to
# five years: WHO Child Growth Standards, length/height-for-age (2006), coefficient S.
STATURE_SD = 0.036
# Published. Standard deviation of the liver's and the spleen's length: Konuş et al., as above.
ORGAN_SD = 0.12


@dataclasses.dataclass(frozen=True)
class Growth:
    """Sizes of one patient at one age, mm.

    Attributes:
      half_width, half_depth: of the abdomen at the umbilicus, skin to skin.
      fat: thickness of the subcutaneous fat at the flank.
      lumbar, thoracic: distance between neighbouring vertebrae.
      vertebra_width: of the ossified part of a lumbar body.
      ossified: share of the distance between vertebrae that is bone (the rest is cartilage and
        disc).
      square: 0 for the oval vertebral body of a newborn, 1 for an adult's box.
      half_pelvis: half the bi-iliac breadth.
      liver, spleen, kidney: semi-axes (lateral, craniocaudal, depth).
      mineral: mineral content of bone relative to a young adult's.
      femoral_head: radius of the ossified part of the femoral head; 0 before it appears.
      trochanter, arches, ischiopubic, acetabulum: 0 (cartilage) to 1 (fused bone) for the
        greater trochanter, the vertebral arches behind the spinal canal, the junction of ischium
        and pubis, and the triradiate cartilage.
      rib_slope: how far the ribs fall from spine to flank, as a share of their span.
      wear: 0 up to middle age, 1 in old age: narrow discs, osteophytes, calcified cartilage.
      visceral_fat: share of fat in what lies between the abdominal organs.
    """

    half_width: float
    half_depth: float
    fat: float
    lumbar: float
    thoracic: float
    vertebra_width: float
    ossified: float
    square: float
    half_pelvis: float
    liver: tuple[float, float, float]
    spleen: tuple[float, float, float]
    kidney: tuple[float, float, float]
    mineral: float
    femoral_head: float
    trochanter: float
    arches: float
    ischiopubic: float
    acetabulum: float
    rib_slope: float
    wear: float
    visceral_fat: float


def _ramp(age: float, start: float, end: float) -> float:
    return min(max((age - start) / (end - start), 0.0), 1.0)


def _semi_axes(length: float, mass: float, flatness: float) -> tuple[float, float, float]:
    """An ellipsoid of this length and mass (density 1.06 g/cm3), wider or narrower than deep."""
    half = length / 2
    product = mass / 1.06e-3 / (4 / 3 * 3.141592653589793 * half)
    return square_root(product * flatness), half, square_root(product / flatness)


def growth(
    age_months: float, sex: str, *, stature: float, girth: float, tempo: float, organs: float
) -> Growth:
    """Sizes of a patient.

    Args:
      age_months: chronological age.
      sex: `"F"` or `"M"`.
      stature: length relative to the median of age and sex.
      girth: width relative to what stature alone would give.
      tempo: bone age relative to chronological age.
      organs: length of the organs relative to what stature alone would give.
    """
    age, bone_age = age_months, age_months * tempo
    years = age / 12

    def along(ages: Sequence[float], values: Sequence[float]) -> float:
        return interpolate(age, ages, values)

    breadth = stature * girth
    half_depth = along(_ICRP_AGES, _HALF_DEPTH_MM) * breadth
    # Organ tables start at two months; below, lengths follow the cube root of the ICRP masses.
    young = 1.0
    if age < 2:
        young = cube_root(
            along(_ICRP_AGES, _LIVER_G[sex]) / interpolate(2, _ICRP_AGES, _LIVER_G[sex])
        )
    size = stature * organs
    volume = size * size * size

    def organ(
        lengths: Sequence[float], masses: _BySex, flatness: float, share: float
    ) -> tuple[float, float, float]:
        length = interpolate(age, _ORGAN_AGES, lengths) * young * size
        return _semi_axes(length, along(_ICRP_AGES, masses[sex]) * volume * share, flatness)

    # Subcutaneous fat (approximate): plump infants, lean children, then with girth and sex.
    fat = interpolate(years, (0, 0.5, 2, 6, 12, 18, 50), (4, 8, 7, 6, 8, 11, 17))
    fat *= breadth * girth * (1.15 if sex == "F" and years > 12 else 1.0)
    half_pelvis = along(_SHAPE_AGES, _HALF_PELVIS_MM[sex]) * stature
    half_width = along(_SHAPE_AGES, _HALF_WIDTH_MM[sex]) * breadth
    head = interpolate(bone_age, (4, 12, 36, 72, 180), (0.0, 5.0, 11.0, 15.0, 24.0))
    return Growth(
        # The thinnest are at least as wide as their pelvis.
        half_width=max(half_width, half_pelvis * 1.04 + fat),
        half_depth=half_depth,
        fat=fat,
        lumbar=along(_SPINE_AGES, _LUMBAR_MM[sex]) / 5 * stature,
        # Lower thoracic vertebrae are taller than the mean of the twelve (approximate).
        thoracic=along(_SPINE_AGES, _THORACIC_MM[sex]) / 12 * 1.1 * stature,
        vertebra_width=along(_SHAPE_AGES, _VERTEBRA_WIDTH_MM) * stature,
        ossified=interpolate(bone_age, (0, 12, 36, 120, 200), (0.58, 0.64, 0.68, 0.74, 0.80)),
        square=_ramp(bone_age, 0, 96),
        half_pelvis=half_pelvis,
        # The largest part of the liver, its right lobe, has four fifths of the mass.
        liver=organ(_LIVER_MM, _LIVER_G, 1.15, 0.8),
        spleen=organ(_SPLEEN_MM, _SPLEEN_G, 0.75, 1.0),
        kidney=organ(_KIDNEY_MM, _KIDNEYS_G, 1.1, 0.5),
        # Mineral (approximate): less in infants, and lost again after forty.
        mineral=interpolate(years, (0, 1, 3, 12, 20, 40, 90), (0.62, 0.62, 0.7, 0.85, 1, 1, 0.62)),
        # Ages of ossification (published): Radiopaedia, "Ossification centres of the hip and
        # pelvis": femoral head 4-6 months, greater trochanter 2-4 years, ischium and pubis joined
        # at 7-9 years, acetabulum closed after puberty. Radii and arches are approximate.
        femoral_head=0.0 if bone_age < 4 else max(head * stature, 1.5),
        trochanter=_ramp(bone_age, 30, 190),
        arches=_ramp(bone_age, 9, 36),
        ischiopubic=_ramp(bone_age, 72, 108),
        acetabulum=_ramp(bone_age, 120, 192),
        rib_slope=interpolate(years, (0, 1, 3, 10, 20), (0.08, 0.12, 0.2, 0.32, 0.42)),
        wear=_ramp(years, 40, 90),
        visceral_fat=interpolate(years, (0, 3, 12, 20, 60), (0.05, 0.09, 0.14, 0.22, 0.34)),
    )
