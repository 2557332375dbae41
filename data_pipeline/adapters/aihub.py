"""AI-Hub 71432, "Pediatric abdominal X-ray image data": the paper's own images.

The schema of its label files is not public. A profile maps its keys. This command prints the keys
of some label files and a profile to fill in:

    python -m data_pipeline.adapters.aihub /data/aihub > profile.json
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.adapters.place import IMAGE_SUFFIXES, parse_place, walk
from data_pipeline.adapters.source_tables import OLDEST_CHILD_MONTHS, ages_in_months
from data_pipeline.cells import SEXES
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

# Names in AI-Hub's description, and usual variants of the others.
_CLASSES = {
    "정상": "normal",
    "기복증": "aeroperitoneum",
    "종괴": "mass",
    "장중첩증": "intussusception",
    "장겹침증": "intussusception",
    "공기액체음영": "air-liquid shadow",
    "이물": "foreign bodies",
    "변비": "constipation",
    "석회화": "calcification",
    "비장비대": "splenomegaly",
    "간비대": "hepatomegaly",
    "내장역위": "situs inversus totalis",
}
_ENGLISH = {re.sub(r"[^a-z]", "", name): name for name in _CLASSES.values()}
_SEXES = SEXES | {"남": "M", "남자": "M", "남성": "M", "여": "F", "여자": "F", "여성": "F"}
_ROLE = re.compile(r"\[?([TV])([SL])(?:[\]_.\- ]|$)")  # TS_..., TL_..., VS_..., VL_...
_IMAGES, _LABELS = "원천데이터", "라벨링데이터"
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|7z|egg|alz)(\.part\d*|\.\d+)?$|\.z\d\d$", re.I)
_LOOKALIKE = re.compile(r"\d+\.(Pyloric_Stenosis|Air_Fluid_Level|Abdominal_Distension)", re.I)
_MONTHS = {"days": 12 / 365.25, "weeks": 84 / 365.25, "months": 1.0, "years": 12.0}
_PROFILE_KEYS = {"class", "classes", "age", "age_unit", "sex", "patient_id", "view", "image"}


def read_aihub(place: str) -> Records:
    """Reads `PATH:profile=PROFILE.json`: unpacked archives at any depth.

    Images lie in folders TS (training) and VS (validation), label files in TL and VL; an image and
    its label share their name. AI-Hub's validation is the test split; validation is cut from its
    training images. The profile is a JSON object whose values are dotted paths into a label file
    (`"annotations.0.disease"`): `class` (or `"folder"`: the name of the TS/VS folder), and if
    there `age` with `age_unit` (days, weeks, months, years), `sex`, `patient_id`, `view`; `classes`
    maps the source's class names to others than the paper's.

    Raises:
      DataError: no profile, archives still packed, another data set, or an unknown class.
    """
    root, options = parse_place("aihub", place, profile="")
    images, labels = _discover(root)
    if not options["profile"]:
        raise DataError(
            f"aihub:{place}: name a profile, aihub:{root}:profile=profile.json; to write one: "
            f"python -m data_pipeline.adapters.aihub {root} > profile.json"
        )
    profile = _read_profile(Path(options["profile"]).expanduser())
    columns: dict[str, list[Any]] = {
        name: [] for name in ("patient_id", "sex", "view", "label", "split")
    }
    paths: list[str] = []
    ages: list[str] = []
    unknown: dict[str, str] = {}
    unlabelled = 0
    for part, image, label_file in _pairs(images, labels):
        if not label_file:
            unlabelled += 1
        content = _read_label(label_file) if label_file else {}
        name = _class(profile, content, image)
        if name is None:
            unknown[str(_class_value(profile, content, image))] = image
        paths.append(image)
        columns["label"].append(name or "")
        columns["patient_id"].append(_text(content, profile.get("patient_id")))
        ages.append(_text(content, profile.get("age")))
        columns["sex"].append(_SEXES.get(_text(content, profile.get("sex")).lower(), ""))
        columns["view"].append(_text(content, profile.get("view")))
        columns["split"].append("train" if part == "T" else "test")
    if unknown:
        raise DataError(
            f"aihub:{place}: unknown class names {', '.join(sorted(unknown)[:12])}; map them in "
            'the profile, "classes": {"name in the file": "intussusception", ...}'
        )
    if unlabelled:
        _log.warning("aihub: %d of %d images have no label file", unlabelled, len(paths))
    if not any(columns["patient_id"]):
        _log.warning(
            "aihub: the profile names no patient_id, so whether images of one patient are in more "
            "than one split cannot be known"
        )
    months = _MONTHS[profile.get("age_unit", "months")]
    known = ages_in_months("aihub", ages, months, OLDEST_CHILD_MONTHS)
    return Records.create(paths, source=f"aihub:{root}", age_months=known, **columns)


# By `(T or V, name)`, then by folder, because names may restart in every class.
_Files = dict[tuple[str, str], dict[str, str]]


def _discover(root: Path) -> tuple[_Files, _Files]:
    """Finds images and label files.

    Raises:
      DataError: there are no images, archives are still packed, two files of a folder share a name,
        or it is another data set.
    """
    images: _Files = {}
    labels: _Files = {}
    archives = []
    for folder, names in walk(root):
        relative = unicodedata.normalize("NFC", os.path.relpath(folder, root))
        if _LOOKALIKE.search(relative):
            raise DataError(
                f"aihub: {root} holds AI-Hub's synthetic set of five classes, not 71432 "
                "(Pediatric abdominal X-ray image data)"
            )
        role, group = _role(relative)
        for name in names:
            stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
            if _ARCHIVE.search(name):
                archives.append(os.path.join(folder, name))
                continue
            elif role.endswith("S") and suffix.lower() in IMAGE_SUFFIXES:
                files = images.setdefault((role[0], stem), {})
            elif role.endswith("L") and suffix.lower() == ".json":
                files = labels.setdefault((role[0], stem), {})
            else:
                continue
            path = f"{folder}{os.sep}{name}"
            if files.setdefault(group, path) != path:
                raise DataError(
                    f"aihub: {files[group]} and {path} share their name, by which an image finds "
                    "its label; keep one of them, or rename both with their labels"
                )
    if archives and not (images and labels):
        raise DataError(
            f"aihub: {len(archives)} archives below {root} are still packed, such as "
            f"{os.path.basename(archives[0])}; join split ones first (cat X.zip.part* > X.zip), "
            "then unpack each into a folder of the same name (unzip -O cp949 TS_X.zip -d TS_X)"
        )
    if not images:
        raise DataError(
            f"aihub: no images below {root} in folders named TS, VS (or {_IMAGES} in Training, "
            "Validation)"
        )
    return images, labels


def _pairs(images: _Files, labels: _Files) -> Iterator[tuple[str, str, str]]:
    """Yields `T` or `V`, an image, and its label file (empty if it has none).

    Raises:
      DataError: several label files may belong to an image.
    """
    for (part, stem), radiographs in images.items():
        found = labels.get((part, stem), {})
        alone = [group for group in radiographs if group not in found]
        spare = [group for group in found if group not in radiographs]
        if alone and spare and len(radiographs) + len(found) > 2:
            raise DataError(
                f"aihub: {radiographs[alone[0]]} has a name that others have too, and no label "
                f"file in a folder named like its own (there is {found[spare[0]]}); name the "
                "folders of images and labels alike, such as TS_변비 and TL_변비"
            )
        for group, image in radiographs.items():
            yield part, image, found.get(group) or (found[spare[0]] if spare else "")


def _role(relative: str) -> tuple[str, str]:
    """`TS`, `TL`, `VS`, `VL` or empty by the path of a folder; and the rest of the path."""
    part = kind = group = ""
    names = relative.split(os.sep)
    for i, name in enumerate(names):
        match = _ROLE.match(name)
        if match:
            return match[1] + match[2], os.sep.join([name[match.end() :], *names[i + 1 :]])
        part = "T" if "training" in name.lower() else "V" if "validation" in name.lower() else part
        if _IMAGES in name or _LABELS in name:
            kind, group = "S" if _IMAGES in name else "L", os.sep.join(names[i + 1 :])
    return (part + kind, group) if part and kind else ("", "")


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        profile = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"aihub: profile {path} cannot be read as JSON ({error})") from None
    if not isinstance(profile, dict) or "class" not in profile:
        raise DataError(f'aihub: profile {path} must be a JSON object with the key "class"')
    extra = sorted(set(profile) - _PROFILE_KEYS)
    if extra:
        raise DataError(
            f"aihub: profile {path} has the unknown key {extra[0]!r}; known: "
            f"{', '.join(sorted(_PROFILE_KEYS))}"
        )
    if profile.get("age_unit", "months") not in _MONTHS:
        raise DataError(f"aihub: profile {path}: age_unit must be one of {', '.join(_MONTHS)}")
    return profile


def _read_label(path: str) -> Any:
    with open(path, "rb") as file:
        data = file.read()
    for encoding in ("utf-8-sig", "cp949"):
        try:
            return json.loads(data.decode(encoding))
        except UnicodeDecodeError:
            continue
        except ValueError:
            break
    raise DataError(f"aihub: label file {path} is not JSON in UTF-8 or CP949")


def _value(content: Any, path: str | None) -> Any:
    """The value at a dotted path such as `annotations.0.disease`; None if there is none."""
    for key in path.split(".") if path else ():
        if isinstance(content, list) and key.isdigit() and int(key) < len(content):
            content = content[int(key)]
        elif isinstance(content, dict) and key in content:
            content = content[key]
        else:
            return None
    return content if path else None


def _text(content: Any, path: str | None) -> str:
    value = _value(content, path)
    return "" if value is None or isinstance(value, dict | list) else str(value).strip()


def _class_value(profile: dict[str, Any], content: Any, image: str) -> str:
    if profile["class"] != "folder":
        return _text(content, profile["class"])
    for name in reversed(Path(unicodedata.normalize("NFC", image)).parts):
        match = _ROLE.match(name)
        if match:
            # TS_2.변비_1 -> 변비: without the number before it and the shard behind it.
            return re.sub(r"^\d+\.|_\d+$", "", name[match.end() :])
    return ""


def _class(profile: dict[str, Any], content: Any, image: str) -> str | None:
    """The condition; empty if the file gives none, None if the name is unknown."""
    value = unicodedata.normalize("NFC", _class_value(profile, content, image))
    if not value:
        return ""
    named = profile.get("classes", {}).get(value)
    korean = _CLASSES.get(re.sub(r"[\s/·-]", "", value))
    return named or korean or _ENGLISH.get(re.sub(r"[^a-z]", "", value.lower()))


def _keys(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every dotted path of a label file with the type of its value, never the value."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _keys(value, f"{prefix}{key}.")
    elif isinstance(content, list):
        if content:
            yield from _keys(content[0], f"{prefix}0.")
    else:
        yield prefix.removesuffix("."), type(content).__name__


def describe_labels(root: Path, files: int = 200) -> str:
    """The dotted paths found in the first label files, with their types and counts."""
    images, labels = _discover(root)
    counts: dict[str, int] = {}
    kinds: dict[str, str] = {}
    label_files = [path for group in labels.values() for path in group.values()]
    read = label_files[:files]
    for path in read:
        for key, kind in _keys(_read_label(path)):
            counts[key] = counts.get(key, 0) + 1
            kinds[key] = kind
    count = sum(map(len, images.values()))
    lines = [f"{count:,} images, {len(label_files):,} label files; keys of {len(read)}:"]
    lines += [f"  {key}  ({kinds[key]}, in {counts[key]})" for key in counts]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print(
            "usage: python -m data_pipeline.adapters.aihub FOLDER > profile.json", file=sys.stderr
        )
        return 2
    try:
        print(describe_labels(Path(argv[1]).expanduser()), file=sys.stderr)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draft = {"class": "folder", "age": "", "age_unit": "months", "sex": "", "patient_id": ""}
    print(json.dumps(draft, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
