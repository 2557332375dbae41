"""Time and memory of the statistics and figures of a report on a large test set.

    python benchmarks/report_scale.py

100,000 predictions of 60,000 patients, 11 classes, 1,000 bootstrap samples: every table, curve and
interval that `report.html` shows. Inference and saliency are not included.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from statistics_scale import make  # noqa: E402

from infantxray.evaluation import diagnostics, operating_points  # noqa: E402
from infantxray.evaluation.subgroups import age_bands  # noqa: E402
from infantxray.evaluation.summary import calibration_of, summarise, to_json  # noqa: E402
from infantxray.reports import run_page, run_sections  # noqa: E402


def main() -> None:
    validation, test, pixels = (make(100_000, 11, seed) for seed in (1, 2, 3))
    sex = np.random.default_rng(0).choice(np.array(["F", "M"], object), len(test))
    start = last = time.perf_counter()

    def done(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        print(f"{what:32} {now - last:6.1f} s", flush=True)
        last = now

    summary = summarise(test, bootstrap_samples=1000)
    summary["calibration"] = calibration_of(test)
    done("headline metrics, bootstrap")
    points = diagnostics.choose_points(
        validation, operating_points.parse_rules("sensitivity:0.95,youden")
    )
    summary["operating_points"] = diagnostics.at_points(test, points, (0.01,))
    done("operating points")
    summary["findings"], curves = diagnostics.findings(test, pixels)
    done("metrics and curves of conditions")
    groups = {"sex": sex, "age": age_bands(test.age_months)}
    summary["subgroups"] = diagnostics.by_subgroup(test, groups, points)
    done("subgroups")
    summary = to_json(summary)
    with tempfile.TemporaryDirectory() as folder:
        run_page.draw(folder, test, summary, [])
        run_sections.figures(folder, test, curves)
        done("figures")
        for tables in run_sections.tables(summary).values():
            for table in tables:
                table.write(folder)
        done("tables")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    busy = time.process_time()
    print(f"{'total':32} {last - start:6.1f} s, of processor {busy:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
