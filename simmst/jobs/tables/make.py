"""The making of a table: keep finished cells, compute the others in worker processes, write the files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation import protocol as protocol_of
from simmst.evaluation.tables import Cell, KeptTests, Table, plot_against_second, summarise, write_table
from simmst.foundation.progress import Progress, quiet
from simmst.foundation.suggestions import suggest
from simmst.foundation.workers import available_cores, in_workers
from simmst.jobs.inputs import open_data
from simmst.jobs.tables.compute import compute, running_path, series_path
from simmst.jobs.tables.plan import Task, as_file_name, code_digest, memory_note, tasks
from simmst.jobs.tables.published import keep_published, published_forecasts
from simmst.jobs.tables.systems import FULL, QUICK, TABLES, System
from simmst.jobs.tables.tuning import load_tuning, tune, tuning_path

SURROGATE_NAME = "surrogate"
_SURROGATE = {"height": 20, "width": 20, "days": 30, "step_minutes": 60}
FIGURES = {2: 1}  # the figure of the paper, and the table whose systems it draws unless another is given


@dataclass(frozen=True, eq=False)
class Made:
    """A table and the files written.

    Attributes:
        table: the table.
        files: Markdown, CSV, LaTeX and, if a figure was requested, a picture.
        trained: number of cells computed by this call; the others were finished before.
        warnings: problems with files of cells.
    """

    table: Table
    files: tuple[Path, ...]
    trained: int
    warnings: tuple[str, ...]


def make_table(
    number: int,
    data: str | Path | TrafficDataset,
    out: str | Path,
    *,
    protocol: str = "hourly",
    horizons: Sequence[int] | None = None,
    days: Sequence[int] | None = None,
    systems: Sequence[str] | None = None,
    services: Sequence[str] | None = None,
    seeds: int = 3,
    quick: bool = False,
    budget: int = 1,
    jobs: int | None = None,
    figure: bool = False,
    any_code: bool = False,
    only_finished: bool = False,
    file_options: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> Made:
    """Make one of the paper's tables on a series, and optionally its figure.

    A finished cell is kept in ``out/cells`` and is not computed again for the same settings, data and code. After an
    interruption the same call resumes from the finished cells.

    Args:
        number: 1 (one service), 2 (several services at once) or 3 (ablations).
        data: path or name of a traffic file, "surrogate" for a simulated city of 20 x 20 cells, or a series.
        out: folder of the cells and of the table's files.
        protocol: name of the protocol.
        horizons: numbers of steps ahead; None takes the protocol's.
        days: numbers of days known before the test, for the protocols "lowdata" and "lowdata-tenmin".
        systems: names of systems; None takes all.
        services: services of the file; None takes Internet for table 1 and all for the others.
        seeds: number of seeds.
        quick: whether to train small networks briefly, for a first look.
        budget: number of configurations tried for each trained system and judged on the validation split.
        jobs: number of worker processes; None takes one per core.
        figure: whether to draw the best and second-best forecasts against the truth.
        any_code: whether to keep finished cells of other versions of the code.
        only_finished: whether to make the table of finished cells without computing any.
        file_options: options for reading a table, as in `simmst.jobs.inputs.open_data`.
        progress: callable that gets the number of finished cells.

    Raises:
        ConfigError: a name is unknown or a number is out of range.
        DataError: the file cannot be read, is too coarse or has too few services, or no cell is finished and none is to
            be computed.
    """
    if number not in TABLES:
        raise ConfigError(f"table is {number}; the paper has tables {', '.join(map(str, TABLES))}")
    chosen = protocol_of(protocol)
    rows, effort, out = chosen_systems(number, systems), QUICK if quick else FULL, Path(out)
    dataset = opened(data, out, file_options)
    dataset = at_step(with_services_of(number, dataset, services), chosen.step_minutes, protocol)
    published = published_forecasts(data, dataset) if isinstance(data, (str, Path)) else None
    rows = [row for row in rows if published is not None or not row.published]
    planned = tasks(rows, dataset, chosen, effort, seeds=seeds, horizons=horizons, days=days, budget=budget)
    finished, warnings = finished_cells(planned, out, any_code=any_code)
    missing = [] if only_finished else [task for task in planned if task.file not in finished]
    workers = available_cores() if jobs is None else jobs
    if workers < 1:
        raise ConfigError(f"jobs is {workers}; it must be at least 1")
    if missing:
        path = series_path(out, missing[0].data["digest"])
        if not path.is_file():
            dataset.save(path)
        if published is not None:
            keep_published(out, missing[0].data["digest"], published)
        fill(missing, finished, out, workers, progress)
    cells = [finished[task.file] for task in planned if task.file in finished]
    if not cells:
        raise DataError(f"no cell of this table is finished in {out}; leave out only_finished to compute them")
    notes = [*([effort.note] if effort.note else []), memory_note(), *provenance(cells, budget, quick)]
    if len(cells) < len(planned):
        notes.append(f"{len(cells)} of {len(planned)} cells are finished; the column seeds says how many each row has")
    stem = out / f"table-{number}-{as_file_name(dataset.name)}-{protocol}{'-quick' if quick else ''}"
    tests = KeptTests(out / "tests" / f"{stem.name}.json")
    table = summarise(number, [row.entry for row in rows], cells, notes, test=tests)
    tests.save()
    files = list(write_table(table, stem))
    if figure:
        files.append(plot_against_second(stem.with_name(f"figure-2-{stem.name}.png"), table, cells))
    return Made(table, tuple(files), len(missing), tuple(warnings))


def chosen_systems(number: int, names: Sequence[str] | None) -> list[System]:
    """Return the systems of a table, all or those named.

    Raises:
        ConfigError: the table has no system with a name.

    Example:
        >>> [system.label for system in chosen_systems(3, ["full"])]
        ['Sim-MSTNet, from random weights']
    """
    known = {system.name: system for system in TABLES[number]}
    for name in names or ():
        if name not in known:
            hint = suggest(name, list(known), otherwise="it has:")
            raise ConfigError(f"table {number} has no system {name!r}; {hint}")
    return [system for name, system in known.items() if not names or name in names]


def opened(data: str | Path | TrafficDataset, out: Path, options: Mapping[str, Any] | None) -> TrafficDataset:
    """Return a series by path or name; "surrogate" simulates one and keeps it in the folder."""
    if isinstance(data, TrafficDataset):
        return data
    if str(data) != SURROGATE_NAME:
        return open_data(data, table=options)
    path = out / "series" / f"{SURROGATE_NAME}.npz"
    if not path.is_file():
        from simmst.simulation import surrogate_city

        surrogate_city(0, **_SURROGATE).save(path)
    return TrafficDataset.from_npz(path)


def with_services_of(number: int, dataset: TrafficDataset, services: Sequence[str] | None) -> TrafficDataset:
    """Return a series with the services of a table.

    Raises:
        DataError: the table needs several services and the series has only one.
    """
    if services is None and number == 1 and dataset.num_services > 1:
        internet = [name for name in dataset.services if name.lower() == "internet"]
        services = internet or dataset.services[:1]
    if services is not None:
        dataset = dataset.select_services(services)
    if number > 1 and dataset.num_services < 2:
        raise DataError(
            f"table {number} needs several services, {dataset.name} has only {', '.join(dataset.services)}; give data "
            "with calls, SMS and Internet, such as milan_three_services_3cells_hourly or surrogate"
        )
    return dataset


def at_step(dataset: TrafficDataset, step_minutes: int, protocol: str) -> TrafficDataset:
    """Return a series in a protocol's slots.

    Raises:
        ConfigError: the series' slots cannot be summed to the protocol's.
    """
    if step_minutes % dataset.step_minutes:
        raise ConfigError(
            f"protocol {protocol!r} has slots of {step_minutes} min, {dataset.name} has slots of "
            f"{dataset.step_minutes} min, which cannot be summed to these; choose another protocol"
        )
    return dataset if dataset.step_minutes == step_minutes else dataset.resample(step_minutes)


def finished_cells(planned: Sequence[Task], out: Path, *, any_code: bool) -> tuple[dict[str, Cell], list[str]]:
    """Return the finished cells by file, and warnings about invalid files in their places."""
    finished, warnings, other_code = {}, [], 0
    for task in planned:
        path = out / "cells" / task.file
        try:
            cell = Cell.load(path)
        except FileNotFoundError:
            continue
        except DataError as error:
            warnings.append(f"{error}".replace("; delete it", "; it is computed again"))
            continue
        if cell.key != task.key or cell.data.get("digest") != task.data["digest"]:
            warnings.append(f"{path} has other data or settings than its name says; it is computed again")
        elif cell.code != code_digest() and not any_code:
            other_code += 1
        else:
            finished[task.file] = cell
            # left by a process that was killed while removing it
            shutil.rmtree(running_path(task, cell.settings, str(out)), ignore_errors=True)
    if other_code:
        warnings.append(f"{other_code} finished cells are from other code and computed again; --any_code keeps them")
    return finished, warnings


def fill(missing: Sequence[Task], finished: dict[str, Cell], out: Path, workers: int, progress: Progress) -> None:
    """Compute cells in worker processes, and keep each one when it is finished."""
    tunings = tuned(missing, out, workers, progress)
    work = [(task, str(out), tunings.get(tuning_path(out, task))) for task in missing]
    progress("cells", 0, len(missing))
    for number, (name, cell) in enumerate(in_workers(fill_one, work, workers, ordered=False), start=1):
        finished[name] = cell
        progress("cells", number, len(missing))


def fill_one(work: tuple[Task, str, Mapping[str, Any] | None]) -> tuple[str, Cell]:
    """Compute a cell and write it; return its file name and the cell."""
    task, folder, tuning = work
    cell = compute(task, folder, tuning)
    cell.save(Path(folder) / "cells" / task.file)
    shutil.rmtree(running_path(task, cell.settings, folder), ignore_errors=True)
    return task.file, cell


def tuned(missing: Sequence[Task], out: Path, workers: int, progress: Progress) -> dict[Path, dict[str, Any]]:
    """Return the tunings of tasks by file; recorded tunings are not repeated."""
    found: dict[Path, dict[str, Any]] = {}
    wanted: dict[Path, Task] = {}
    for task in missing:
        path = tuning_path(out, task)
        if task.budget == 1 or path in found or path in wanted:
            continue
        recorded = load_tuning(path)
        if recorded is None:
            wanted[path] = task
        else:
            found[path] = recorded
    done = in_workers(tune, [(task, str(out)) for task in wanted.values()], workers)
    for number, (path, record) in enumerate(zip(wanted, done, strict=True), start=1):
        found[path] = record
        progress("tuning", number, len(wanted))
    return found


def provenance(cells: Sequence[Cell], budget: int, quick: bool) -> list[str]:
    """Say with which code and how much tuning the cells were made."""
    commits = sorted({str(cell.record.get("commit"))[:10] for cell in cells})
    dates = sorted(str(cell.record.get("date"))[:10] for cell in cells)
    codes = len({cell.code for cell in cells})
    mixed = f", {codes} versions of the code" if codes > 1 else ""
    how = "default settings" if budget == 1 else f"the best of {budget} configurations each on the validation split"
    kind = "quick" if quick else "full"
    return [f"{kind} trainings, {how}; commit {', '.join(commits)}{mixed}; {dates[0]} to {dates[-1]}"]
