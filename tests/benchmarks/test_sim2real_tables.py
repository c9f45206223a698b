"""The program of the tables on scarce real data: its output follows from the cases, and splits do not overlap."""

from __future__ import annotations

import pytest

from sim2real import real_data as program


def found(solver, seed, mae):
    more = ", with the validation days"
    naive = {"ridge": {"net": 10.0}, "persistence": {"net": 20.0}, f"ridge{more}": {"net": 40.0}}
    naive[f"persistence{more}"] = {"net": 5.0}
    case = {"data": "milan-hourly", "days": 1, "horizon": 6, "solver": solver, "seed": seed}
    return {**case, "mae": {solver: {"net": mae}, **naive}, "left_out": {}}


def test_a_row_compares_solvers_seed_by_seed_and_with_the_best_naive_forecast():
    cases = [found("real-only", 0, 12.0), found("real-only", 1, 16.0)]
    cases += [found("cutting-plane", 0, 9.0), found("cutting-plane", 1, 8.0)]
    *_, row = program.table(cases).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["milan-hourly", "1", "6"]
    assert cells[3:7] == ["14.0 ± 2.8", "8.5 ± 0.7", "10.0 (ridge)", "5.0 (persistence)"]
    assert float(cells[7]) == pytest.approx((9 / 12 + 8 / 16) / 2)
    assert float(cells[8]) == pytest.approx(0.85)
    assert float(cells[9]) == pytest.approx(1.7)


def test_a_ratio_without_its_other_side_is_left_open():
    *_, row = program.table([found("cutting-plane", 0, 9.0)]).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")][-3:] == ["-", "0.900", "1.800"]


def test_every_case_has_a_name_of_its_own(tmp_path):
    options = program.parse(["--out", str(tmp_path), "--seeds", "2"])
    names = [case.name for case in program.cases(options)]
    assert len(names) == len(set(names)) == 2 * 4 * (4 * 3 + 4 * 3 + 3 * 2)


@pytest.mark.parametrize("data", ["milan-hourly", "milan-10min", "services-hourly"])
def test_training_validation_and_test_lie_apart(data, real_file):
    series = program.SERIES[data]
    real_file(f"{series.file}.npz")
    for days in series.days:
        _, split = program.setting(program.Case(data, days, max(series.horizons), "joint", 0))
        assert len(split.train) == days * 24 * 60 // series.step
        assert split.train.stop == split.validation.start
        assert split.validation.stop == split.test.start
        assert split.test.stop == program.real_series(data).num_steps
