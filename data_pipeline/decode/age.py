"""Age of a patient when the image was taken, from the age string and dates of a DICOM header."""

from __future__ import annotations

import datetime
import math
import re

# PS3.5 6.2 requires three digits and a capital; many writers omit one or the other.
_AGE_STRING = re.compile(r"\s*(\d{1,3})\s*([DWMY])\s*", re.ASCII | re.IGNORECASE)
_DAYS_A_MONTH = 30.4375
_MONTHS = {"D": 1 / _DAYS_A_MONTH, "W": 7 / _DAYS_A_MONTH, "M": 1.0, "Y": 12.0}
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
# De-identification often writes the first day of a century for an unknown birth date.
_PLACEHOLDER_BIRTH = datetime.date(1900, 1, 1)
_MAX_AGE_MONTHS = 120 * 12


def age_months(text: str, birth: str, study: str, notes: list[str]) -> float:
    """Age in months; NaN if it is unknown.

    An age string in days, weeks or months is used as it is. Whole years are too coarse for an
    infant, so the age is computed from the dates, as without an age string. Dates that differ from
    the string by more than a year are treated as placeholders, because de-identification changes
    dates and keeps ages; the string is then used. Zero years are unknown unless the dates agree,
    and so is any zero that the dates contradict: writers use both for a missing age.

    Args:
      text: PatientAge.
      birth: PatientBirthDate.
      study: StudyDate.
      notes: gets a note that begins with "age" for every decision.
    """
    from_dates = _months_between(_date(birth), _date(study))
    match = _AGE_STRING.fullmatch(text)
    unit = match[2].upper() if match else ""
    stated = int(match[1]) * _MONTHS[unit] if match else math.inf
    if stated > _MAX_AGE_MONTHS:
        if text:
            notes.append("age string ignored: no plausible number of D, W, M or Y")
        return from_dates
    # Strings are rounded, off by a year where calendar years were subtracted, and some days stale.
    slack = max(1.0, _MONTHS[unit])
    agree = stated - slack < from_dates < stated + _MONTHS[unit] + slack
    if unit == "Y" and agree:
        return from_dates
    contradicted = not agree and not math.isnan(from_dates)
    if stated == 0 and (unit == "Y" or contradicted):
        notes.append("age unknown: stated as zero, without dates that agree")
        return math.nan
    if contradicted:
        notes.append("age string and dates disagree; the string taken")
    return stated


def _months_between(birth: datetime.date | None, study: datetime.date | None) -> float:
    if birth is None or study is None or birth <= _PLACEHOLDER_BIRTH or study < birth:
        return math.nan
    months = (study - birth).days / _DAYS_A_MONTH
    return months if months <= _MAX_AGE_MONTHS else math.nan


def _date(text: str) -> datetime.date | None:
    match = _DATE.fullmatch(text)
    try:
        return datetime.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None
