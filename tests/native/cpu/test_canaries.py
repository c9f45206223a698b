"""No kernel writes outside its results, which lie between canaries here; entries that are never written are noticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import native_targets
import pytest
import torch
from drawing import Draw

EDGE = 256  # bytes, four cache lines
BYTE = 0xA5


class Aviary:
    """Replaces torch's functions that make a tensor without content."""

    def __init__(self) -> None:
        self.wide: list[torch.Tensor] = []

    def between(self, empty: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same form, between canaries and full of them."""
        size = empty.element_size()
        if empty.numel() == 0 or empty.device.type != "cpu" or sum(empty.stride()) == 0:
            return empty
        extent = 1 + sum((n - 1) * s for n, s in zip(empty.shape, empty.stride(), strict=True))
        whole = torch.full((2 * EDGE + extent * size,), BYTE, dtype=torch.uint8)
        self.wide.append(whole)
        return whole.view(empty.dtype).as_strided(empty.shape, empty.stride(), EDGE // size)

    def guarding(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def instead(*arguments: Any, **named: Any) -> torch.Tensor:
            return self.between(function(*arguments, **named))

        return instead

    def alive(self) -> bool:
        return all(bool((whole[:EDGE] == BYTE).all() and (whole[-EDGE:] == BYTE).all()) for whole in self.wide)


@pytest.fixture
def aviary(monkeypatch) -> Aviary:
    made = Aviary()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, made.guarding(getattr(owner, name)))
    return made


@pytest.mark.parametrize("name", native_targets.TARGETS)
def test_canaries_live(aviary, name):
    drawn = random.Random(name)
    for _ in range(40):
        try:
            native_targets.TARGETS[name](Draw(drawn.randbytes(60)))
        except (ValueError, TypeError):  # a public function refuses the arguments
            continue
        assert aviary.alive()
    assert len(aviary.wide) > 20


def test_a_write_past_the_end_is_noticed(aviary):
    torch.empty(3).as_strided((4,), (1,)).fill_(0.0)
    assert not aviary.alive()
