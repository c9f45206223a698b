"""Make a table: take up the cells that are finished, fill the others in worker processes, write the files."""

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
FIGURES = {2: 1}  # the figure of the paper, and the table whose systems it draws where no table is named


@dataclass(frozen=True, eq=False)
class Made:
    """A table and what was written.

    Attributes:
        table: the table.
        files: Markdown, CSV, LaTeX and, where a figure was asked for, a picture.
        trained: cells that were filled now; the others were finished before.
        warnings: what was wrong with files of cells.
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
    """Make one of the paper's tables on a series, and the figure beside it.

    A finished cell is kept in ``out/cells`` and not computed again for the same settings, data and code. Whatever ends
    the work, the same call goes on from the cells that are finished.

    Args:
        number: 1 (one service), 2 (several services at once) or 3 (ablations).
        data: path or name of a traffic file, "surrogate" for a simulated city of 20 x 20 cells, or a series.
        out: the folder of the cells and the table's files.
        protocol: its name.
        horizons: steps ahead; the protocol's when None.
        days: days known before the test, of the protocols "lowdata" and "lowdata-tenmin".
        systems: names of rows; all when None.
        services: of the file; None takes Internet for table 1, else all.
        seeds: how many.
        quick: short trainings of small networks, for a look.
        budget: configurations tried for each trained system, chosen on the validation split.
        jobs: worker processes; as many as there are cores when None.
        figure: draw the best and second-best forecasts against the truth.
        any_code: also take finished cells of other versions of the code.
        only_finished: make the table of the cells that are finished, and compute none.
        file_options: what a table file leaves open, as in `simmst.jobs.inputs.open_data`.
        progress: called as cells are finished.

    Raises:
        ConfigError: a name or number is out of range.
        DataError: the file cannot be read, is too coarse, or has too few services; or only finished cells are wanted,
            and there is none.
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
        raise DataError(f"no cell of this table is finished in {out}; call it without only_finished to fill them")
    notes = [*([effort.note] if effort.note else []), memory_note(), *provenance(cells, budget, quick)]
    if len(cells) < len(planned):
        notes.append(f"{len(cells)} of {len(planned)} cells are finished; the column of seeds says how many a row has")
    stem = out / f"table-{number}-{as_file_name(dataset.name)}-{protocol}{'-quick' if quick else ''}"
    tests = KeptTests(out / "tests" / f"{stem.name}.json")
    table = summarise(number, [row.entry for row in rows], cells, notes, test=tests)
    tests.save()
    files = list(write_table(table, stem))
    if figure:
        files.append(plot_against_second(stem.with_name(f"figure-2-{stem.name}.png"), table, cells))
    return Made(table, tuple(files), len(missing), tuple(warnings))


def chosen_systems(number: int, names: Sequence[str] | None) -> list[System]:
    """Return the rows of a table, all or those named.

    Raises:
        ConfigError: there is none of a name.

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
    """Return a series by its path or name; "surrogate" simulates one, and keeps it in the folder."""
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
        DataError: a table of several services, and there is but one.
    """
    if services is None and number == 1 and dataset.num_services > 1:
        internet = [name for name in dataset.services if name.lower() == "internet"]
        services = internet or dataset.services[:1]
    if services is not None:
        dataset = dataset.select_services(services)
    if number > 1 and dataset.num_services < 2:
        raise DataError(
            f"table {number} is of several services, {dataset.name} has {', '.join(dataset.services)} alone; give data "
            "with calls, SMS and Internet, such as milan_three_services_3cells_hourly or surrogate"
        )
    return dataset


def at_step(dataset: TrafficDataset, step_minutes: int, protocol: str) -> TrafficDataset:
    """Return a series at a protocol's step.

    Raises:
        ConfigError: its slots cannot be summed up to that step.
    """
    if step_minutes % dataset.step_minutes:
        raise ConfigError(
            f"protocol {protocol!r} has steps of {step_minutes} min, {dataset.name} has steps of "
            f"{dataset.step_minutes} min, which cannot be summed up to that; choose another protocol"
        )
    return dataset if dataset.step_minutes == step_minutes else dataset.resample(step_minutes)


def finished_cells(planned: Sequence[Task], out: Path, *, any_code: bool) -> tuple[dict[str, Cell], list[str]]:
    """Return the cells that are finished, by their files, and what is wrong with other files in their places."""
    finished, warnings, other_code = {}, [], 0
    for task in planned:
        path = out / "cells" / task.file
        try:
            cell = Cell.load(path)
        except FileNotFoundError:
            continue
        except DataError as error:
            warnings.append(f"{error}".replace("; delete it", "; it is made again"))
            continue
        if cell.key != task.key or cell.data.get("digest") != task.data["digest"]:
            warnings.append(f"{path} is of other data or settings than its name says; it is made again")
        elif cell.code != code_digest() and not any_code:
            other_code += 1
        else:
            finished[task.file] = cell
            # of a process that was killed while it removed it
            shutil.rmtree(running_path(task, cell.settings, str(out)), ignore_errors=True)
    if other_code:
        warnings.append(f"{other_code} finished cells are of other code and are made again; --any_code keeps them")
    return finished, warnings


def fill(missing: Sequence[Task], finished: dict[str, Cell], out: Path, workers: int, progress: Progress) -> None:
    """Fill cells in worker processes, and keep each as it is finished."""
    tunings = tuned(missing, out, workers, progress)
    work = [(task, str(out), tunings.get(tuning_path(out, task))) for task in missing]
    progress("cells", 0, len(missing))
    for number, (name, cell) in enumerate(in_workers(fill_one, work, workers, ordered=False), start=1):
        finished[name] = cell
        progress("cells", number, len(missing))


def fill_one(work: tuple[Task, str, Mapping[str, Any] | None]) -> tuple[str, Cell]:
    """Fill a cell and write it; return the name of its file, too."""
    task, folder, tuning = work
    cell = compute(task, folder, tuning)
    cell.save(Path(folder) / "cells" / task.file)
    shutil.rmtree(running_path(task, cell.settings, folder), ignore_errors=True)
    return task.file, cell


def tuned(missing: Sequence[Task], out: Path, workers: int, progress: Progress) -> dict[Path, dict[str, Any]]:
    """Return the tunings of the tasks that have one, by their files; what is recorded is not repeated."""
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
    """Say by which code and with how much tuning cells were made."""
    commits = sorted({str(cell.record.get("commit"))[:10] for cell in cells})
    dates = sorted(str(cell.record.get("date"))[:10] for cell in cells)
    codes = len({cell.code for cell in cells})
    mixed = f", {codes} versions of the code" if codes > 1 else ""
    how = "default settings" if budget == 1 else f"the best of {budget} configurations each on the validation split"
    kind = "quick" if quick else "full"
    return [f"{kind} trainings, {how}; commit {', '.join(commits)}{mixed}; {dates[0]} to {dates[-1]}"]
