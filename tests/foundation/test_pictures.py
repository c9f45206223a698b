"""Saved pictures: the same figure gives the same bytes, in every format."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from simmst.errors import ConfigError
from simmst.foundation.pictures import FORMATS, new_figure, panels, save_picture


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(name: str) -> bytes:
        figure = new_figure(2, 2)
        (axes,) = panels(figure, 1, 1)
        axes.plot([0, 1], [1, 0], label="line")
        axes.legend()
        return save_picture(figure, tmp_path / f"{name}{suffix}").read_bytes()

    first = saved("first")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    assert saved("second") == first


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"picture\.bmp should end in one of"):
        save_picture(new_figure(2, 2), tmp_path / "picture.bmp")
