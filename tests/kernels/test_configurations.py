"""The table of launch configurations: its content, what it refuses, and how a trial replaces an entry."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from simmst.errors import ConfigError
from simmst.kernels import configurations

ENTRY = {
    "configurations": {
        "narrow": {"constants": {"BLOCK": 32}, "num_warps": 2, "num_stages": 1},
        "wide": {"constants": {"BLOCK": 128}, "num_warps": 8, "num_stages": 3},
        "interpreter": {"constants": {"BLOCK": 512}, "num_warps": 1, "num_stages": 1},
    },
    "buckets": {"N1024-bf16": "wide"},
    "default": "narrow",
    "interpreter": "interpreter",
}


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    parsed = configurations.parse({"measured": None, "kernels": {"adder.add": ENTRY}})
    monkeypatch.setattr(configurations, "_loaded", lambda: parsed)


def test_the_file_is_sound_and_says_whether_it_was_measured() -> None:
    parsed = configurations.parse(json.loads(configurations.FILE.read_text()))
    assert set(parsed) == set(configurations.kernels())
    for kernel in parsed:
        assert kernel.partition(".")[0] in ("prob_sparse_attention", "spatial_attention", "cutting_plane")
        assert configurations.named(kernel)
    measured = configurations.measured()
    assert measured is None or set(measured) == {"device", "date", "commit", "versions"}


def test_a_bucket_gets_its_entry_and_others_the_default(one_kernel: None) -> None:
    wide = configurations.configuration("adder.add", "N1024-bf16")
    assert wide.name == "wide"
    assert wide.launch() == {"BLOCK": 128, "num_warps": 8, "num_stages": 3}
    assert configurations.configuration("adder.add", "N2048-bf16").name == "narrow"
    assert [one.name for one in configurations.named("adder.add")] == ["narrow", "wide"]


def test_the_interpreter_always_gets_its_own(one_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert configurations.configuration("adder.add", "N1024-bf16").name == "interpreter"


def test_an_unknown_kernel_names_the_known_ones(one_kernel: None) -> None:
    with pytest.raises(ConfigError, match=r"configurations\.json has no kernel 'adder\.sub'; it has adder\.add"):
        configurations.configuration("adder.sub", "N1")


def test_a_trial_replaces_the_table_and_keeps_what_was_asked_for(one_kernel: None) -> None:
    with configurations.trial({"adder.add": "wide"}) as asked:
        assert configurations.configuration("adder.add", "N1").name == "wide"
        with configurations.trial({"adder.add": "narrow"}) as inner:
            assert configurations.configuration("adder.add", "N1024-bf16").name == "narrow"
        assert configurations.configuration("adder.add", "N2").name == "wide"
    assert asked == {("adder.add", "N1"), ("adder.add", "N2")}
    assert inner == {("adder.add", "N1024-bf16")}
    assert configurations.configuration("adder.add", "N1").name == "narrow"
    with (
        pytest.raises(ConfigError, match="the trial names the configuration 'huge', which is none of narrow, wide"),
        configurations.trial({"adder.add": "huge"}),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("default",), "huge", "default names the configuration 'huge', which is none of narrow, wide$"),
        (("default",), "interpreter", "default names the configuration 'interpreter', which is none of narrow, wide$"),
        (("interpreter",), "huge", "interpreter names the configuration 'huge'"),
        (("buckets", "N1"), "huge", "bucket 'N1' names the configuration 'huge'"),
        (("configurations", "wide", "num_warps"), 3, "num_warps is 3; it must be a power of two up to 32"),
        (("configurations", "wide", "num_stages"), 0, "num_stages is 0"),
        (("configurations", "wide", "constants", "BLOCK"), 1.5, "constant BLOCK is 1.5; it must be an integer"),
        (("configurations", "wide", "warps"), 4, r"configuration 'wide' of kernel 'adder.add': missing \[\], unknown"),
        (("fallback",), "wide", r"kernel 'adder.add': missing \[\], unknown \['fallback'\]"),
    ],
)
def test_a_damaged_table_is_refused_with_its_place(path: tuple[str, ...], value: Any, message: str) -> None:
    entry = copy.deepcopy(ENTRY)
    target: Any = entry
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        configurations.parse({"measured": None, "kernels": {"adder.add": entry}})


def test_a_file_without_its_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"missing \['measured'\]"):
        configurations.parse({"kernels": {}})
