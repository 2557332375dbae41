"""How long the rest of a study will take."""

from __future__ import annotations

from collections.abc import Iterable

from infantxray.studies.plan import Run


def seconds_left(todo: Iterable[Run], runs: Iterable[Run], parallel: int) -> float | None:
    """Estimated from how long finished runs took; None before any has.

    A task with an encoder that was never run is estimated from the same task with other encoders,
    scaled by how this encoder compares with them in other tasks.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        record = run.read_record()
        if record.get("finished"):
            times.setdefault((run.task, run.encoder), []).append(record["seconds"])
    known = {kind: sum(values) / len(values) for kind, values in times.items()}
    if not known:
        return None
    return sum(_estimate(known, run.task, run.encoder) for run in todo) / parallel


def _estimate(known: dict[tuple[str, str], float], task: str, encoder: str) -> float:
    if (task, encoder) in known:
        return known[task, encoder]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    everything = mean(list(known.values()))
    of_task = [v for (t, _), v in known.items() if t == task]
    if not of_task:
        # No run of this task: use the times of the encoder in other tasks.
        of_encoder = [v for (_, e), v in known.items() if e == encoder]
        return mean(of_encoder) if of_encoder else everything
    ratios = []
    for (t, e), value in known.items():
        if e == encoder:
            others = [v for (t2, e2), v in known.items() if t2 == t and e2 != encoder]
            ratios += [value / mean(others)] if others else []
    return mean(of_task) * (mean(ratios) if ratios else 1.0)
