"""The HTML page of a run, made from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from simmst.errors import ConfigError, SimmstError
from simmst.evaluation import Report, TestedSlots
from simmst.evaluation.forecasts import FORECASTS_FILE
from simmst.forecaster import Forecaster
from simmst.forecaster.saving import WEIGHTS_FILE
from simmst.foundation.documents import DocumentError, read_json
from simmst.jobs.runs import REPORT_FILE, WEIGHTS_REPORT_FILE
from simmst.jobs.saved import score_unseen
from simmst.jobs.tested import tested_slots
from simmst.plotting import Page, write_page
from simmst.training import History, RunFolder
from simmst.training.run_folder import flattened

Made = TypeVar("Made")

PAGE_FILE = "report.html"
_DATA_KEYS = ("data", "digest", "step", "services")


def report(
    run: str | Path,
    *,
    data: str | Path | None = None,
    table: Mapping[str, Any] | None = None,
    days: int | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write one self-contained HTML page of a run that opens from disk, without a network.

    The forecasts are those that the run kept when it was tested. With `data` they are made again, for the slots that
    the forecaster has not seen. The page says which of the two it shows.

    Args:
        run: a folder that `train`, `demo` or `Forecaster.save` wrote.
        data: file that the run was trained on, or a longer one of the same cells.
        table: options for reading a table, as in `simmst.jobs.inputs.open_data`.
        days: last days shown on the map; None takes as many as keep the page small.
        out: path of the page; None writes ``report.html`` into the run's folder.

    Returns:
        The path written.

    Raises:
        ConfigError: the folder holds no run or an unfinished one, or a file in it is damaged.
        DataError: the forecasts, or the data, cannot be read.
        CheckpointError: the forecaster is damaged.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    folder = RunFolder(run)
    if not folder.path.is_dir():
        raise ConfigError(f"there is no run folder {folder.path}; give a folder that simmst train or demo wrote")
    slots, scores, source = _tested(folder, data, table)
    weights = _from_json(folder.path / WEIGHTS_REPORT_FILE, _checked_weights)
    page = Page(slots, source, scores, _histories(folder), weights, _record(folder, slots))
    return write_page(folder.path / PAGE_FILE if out is None else out, page, days=days)


def _tested(
    folder: RunFolder, data: str | Path | None, table: Mapping[str, Any] | None
) -> tuple[TestedSlots, Report | None, str]:
    """Return the forecasts, their scores, and a sentence that says where they come from."""
    path = folder.path
    if data is not None:
        forecaster = Forecaster.load(path)
        dataset, scores = score_unseen(forecaster, path, data, table=table, stride=forecaster.spec.horizon)
        source = (
            f"The run's model made these forecasts for this page, of slots of {Path(data).name} that it had not seen."
        )
        return tested_slots(forecaster, dataset, scores), scores, source
    if (path / FORECASTS_FILE).is_file():
        source = "The run made these forecasts when it was tested, for slots that its training had not seen."
        return TestedSlots.read(path), _from_json(path / REPORT_FILE, Report.from_dict), source
    if (path / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"{path} keeps no forecasts of tested slots (no {FORECASTS_FILE}); give the data it was trained on, or a "
            "longer file of the same cells: --data FILE"
        )
    if folder.config_path.is_file() and not folder.finished:
        raise ConfigError(f"the run in {path} is not finished; run its command again to resume it")
    raise ConfigError(
        f"{path} holds no run (no {FORECASTS_FILE}, no {WEIGHTS_FILE}); give a folder that simmst train or demo wrote"
    )


def _from_json(path: Path, make: Callable[[Any], Made]) -> Made | None:
    """Return the content of a file of the run; None where the file is missing."""
    if not path.is_file():
        return None
    with _naming(path):
        return make(read_json(path, dict[str, Any]))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error in the content of a file into one that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SimmstError) and not isinstance(error, DocumentError):
            raise
        raise ConfigError(
            f"{path} is damaged ({_said(error)}); run the run's command again, or restore the file"
        ) from error


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _checked_weights(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse weights that `WeightReport.to_dict` cannot have written."""
    for key in ("num_samples", "effective_samples", "effective_cities"):
        float(weights[key])
    for city in weights["cities"]:
        str(city["name"]), float(city["weight"])
    for one in weights["parameters"]:
        str(one["name"]), [float(one[key]) for key in ("prior_mean", "posterior_mean", "shift")]
    return weights


def _histories(folder: RunFolder) -> list[History]:
    by_stage: dict[str, list[dict[str, Any]]] = {}
    with _naming(folder.metrics_path):
        for record in folder.metrics():
            by_stage.setdefault(str(record["stage"]), []).append({**record, "epoch": int(record["epoch"])})
    return [History(stage, records) for stage, records in by_stage.items()]


def _record(folder: RunFolder, slots: TestedSlots) -> dict[str, dict[str, str]]:
    """Return headings, names and values: the data, the settings, and the machine of the run."""
    config = _from_json(folder.config_path, flattened) or {}
    environment = _from_json(folder.environment_path, flattened) or {}
    dataset = slots.dataset
    first, last = (str(time).replace("T", " ") for time in (dataset.time[0], dataset.time[-1]))
    data = {
        "name": dataset.name,
        **{
            name: _text(config[key]) for name, key in zip(("file", "digest"), _DATA_KEYS, strict=False) if key in config
        },
        "kind": "SURROGATE: simulated, no real city" if dataset.surrogate else "as the file gives it",
        "tested slots": f"{first} to {last} UTC, {dataset.num_steps} slots of {dataset.step_minutes} min",
        "services": ", ".join(dataset.services),
        "unit": dataset.unit,
        "holidays of": dataset.country or "no country",
        "covariates": "none" if dataset.covariates is None else ", ".join(dataset.covariates.names),
    }
    made = {name: _text(value) for name, value in config.items() if name not in _DATA_KEYS}
    where = {name.removeprefix("packages."): _text(value) for name, value in environment.items()}
    where = {("commit of the checkout" if name == "commit" else name): value for name, value in where.items()}
    sections = {"Data": data, "Settings": made, "Versions and machine": where}
    return {heading: entries for heading, entries in sections.items() if entries}


def _text(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
