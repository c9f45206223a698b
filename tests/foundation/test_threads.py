from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from simmst.foundation.threads import at_most, in_threads, one_openmp_thread


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_meet_in_as_many_threads_as_torch_has_and_each_computes_alone():
    meeting = threading.Barrier(2, timeout=20)

    def wait(item: int) -> tuple[int, int, int]:
        meeting.wait()  # raises if one thread takes the items in turn
        return item, torch.get_num_threads(), threading.get_ident()

    found = in_threads(wait, [5, 6, 7, 8])
    assert [item for item, _, _ in found] == [5, 6, 7, 8]
    assert {team for _, team, _ in found} == {1}
    assert len({thread for _, _, thread in found}) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("items", "device"), [([1], "cpu"), ([1, 2], "cuda")])
def test_one_item_and_a_gpu_need_no_threads(items: list[int], device: str):
    found = in_threads(lambda _: (threading.get_ident(), torch.get_num_threads()), items, device)
    assert set(found) == {(threading.get_ident(), 2)}


def test_an_error_comes_out_and_the_setting_is_given_back():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0, 1])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("wanted", "used"), [(-1, 1), (0, 1), (1, 1), (2, 2), (9, 2)])
def test_at_most_so_many_threads_and_the_setting_is_given_back(wanted: int, used: int):
    with at_most(wanted):
        assert torch.get_num_threads() == used
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), at_most(wanted):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_one_openmp_thread_holds_for_all_runtimes_and_is_given_back():
    pytest.importorskip("sklearn.ensemble", reason="comes with the extra forecast")
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "openmp"]

    before = threads()
    assert max(before) >= 2
    with one_openmp_thread():
        inside = threads()
    assert inside == [1] * len(before)
    assert threads() == before
