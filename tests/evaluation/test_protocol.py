from __future__ import annotations

import pytest
from evaluation_city import city

from simmst.errors import ConfigError, DataError
from simmst.evaluation.protocol import PROTOCOLS, prepare


def test_the_documented_protocols_are_there():
    hourly, tenmin, lowdata = (PROTOCOLS[name] for name in ("hourly", "tenmin", "lowdata"))
    assert (hourly.step_minutes, hourly.horizons, hourly.recent, hourly.daily) == (60, (1, 6, 24), 24, 3)
    assert (tenmin.step_minutes, tenmin.horizons, tenmin.recent, tenmin.daily) == (10, (1, 3, 6), 12, 0)
    assert lowdata.first_days == (1, 2, 4, 7, 14)
    assert all(p.test_days == p.validation_days == 7 for p in PROTOCOLS.values())


def test_a_long_series_is_taken_as_the_protocol_says():
    setting = prepare("hourly", city(30), horizon=6)
    assert setting.notes == ()
    assert setting.spec.horizon == 6
    assert setting.spec.reach == 72
    assert setting.spec.input_length == 24 + 2 * 6  # the six slots a day ago are among the recent ones
    assert len(setting.split.test) == len(setting.split.validation) == 7 * 24
    assert setting.split.test.stop == 30 * 24


def test_finer_series_are_summed_up():
    fine = city(30, step_minutes=10)
    setting = prepare("hourly", fine, horizon=1)
    assert setting.dataset.step_minutes == 60
    assert setting.dataset.activity[0, 0, 1, 1] == pytest.approx(fine.activity[:6, 0, 1, 1].sum(), rel=1e-5)


def test_a_coarser_series_is_refused():
    with pytest.raises(ConfigError, match=r"slots of 10 min, .* has slots of 60 min"):
        prepare("tenmin", city(30))


def test_short_series_shrink_and_say_so():
    setting = prepare("hourly", city(7), horizon=6)
    assert (len(setting.split.validation), len(setting.split.test)) == (48, 48)
    # three days to train on: half of them stay free for targets
    assert 2 * (setting.spec.reach + 5) <= 72
    assert any("instead of 7 and 7" in note for note in setting.notes)
    assert any(note.startswith("inputs shrunk from 24 recent steps + 3 days to") for note in setting.notes)


def test_low_data_trains_on_the_first_days_and_tests_on_the_same_week():
    whole = prepare("lowdata", city(30), horizon=6)
    few = prepare("lowdata", city(30), horizon=6, first_days=4)
    assert few.split.train == range(96)
    assert few.split.test == whole.split.test
    assert any("first 4 days" in note for note in few.notes)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="no protocol 'weekly'"):
        prepare("weekly", city(9))
    with pytest.raises(ConfigError, match="horizon is 0"):
        prepare("hourly", city(9), horizon=0)
    with pytest.raises(DataError, match="too few for a window"):
        prepare("hourly", city(3), horizon=48)
