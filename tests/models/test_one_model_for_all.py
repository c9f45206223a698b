"""One set of weights serves any horizon and any services."""

from __future__ import annotations

import pytest
import torch
from model_windows import NAN, build, inputs, memory_of, of_tasks, small, without_tasks

from simmst.models import SimMSTNet

THREE = small(services=("call", "sms", "internet"))


def loaded(config, state) -> SimMSTNet:
    model = SimMSTNet(config).double().eval()
    state = {name: tensor for name, tensor in state.items() if name != "task_weights.weights"}
    assert model.load_state_dict(state, strict=False).missing_keys == ["task_weights.weights"]
    return model


@pytest.mark.parametrize("remembered", [True, False])
def test_a_shorter_horizon_gives_the_first_steps_of_the_longer(remembered):
    long, short = small(horizon=24), small(horizon=6)
    model = build(long)
    values, marks, mask = inputs(long)
    memory = memory_of(long) if remembered else None
    wanted = model(values, marks, mask=mask, memory=memory, quantiles=True)[:, :6]
    twin = loaded(short, model.state_dict())
    steps = short.input_length + short.horizon
    if memory is not None:
        memory = memory._replace(days=memory.days[:, :, :steps], same_day=memory.same_day[:, :, :6])
    found = twin(values, marks[:, :steps], mask=mask, memory=memory, quantiles=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("task", [0, 1, 2])
def test_one_service_is_forecast_as_by_a_model_of_three_of_which_two_are_unknown(task, remembered):
    model = build(THREE)
    values, marks, mask = inputs(THREE)
    others = [number for number in range(3) if number != task]
    memory = memory_of(THREE) if remembered else None
    values[:, :, others] = NAN
    three = memory if memory is None else without_tasks(memory, others)
    wanted = model(values, marks, mask=mask, memory=three)
    assert wanted.isfinite().all()
    twin = loaded(small(services=THREE.services[task : task + 1]), model.state_dict())
    one = memory if memory is None else of_tasks(memory, [task])
    found = twin(values[:, :, task : task + 1], marks, mask=mask, memory=one)
    torch.testing.assert_close(found, wanted[..., task : task + 1], rtol=0, atol=1e-9)


def test_the_order_of_the_services_does_not_matter():
    model = build(THREE)
    values, marks, mask = inputs(THREE)
    memory, order = memory_of(THREE), [2, 0, 1]
    twin = loaded(small(services=tuple(THREE.services[task] for task in order)), model.state_dict())
    found = twin(values[:, :, order], marks, mask=mask, memory=of_tasks(memory, order))
    torch.testing.assert_close(found, model(values, marks, mask=mask, memory=memory)[..., order])


def test_a_service_of_another_name_borrows_and_says_so():
    model = build(small(services=("call", "voice", "data")))
    assert model.tasks.borrowed == ("voice", "data")
    twin = loaded(small(services=("call", "paging", "roaming")), model.state_dict())
    config = model.config
    values, marks, mask = inputs(config)
    torch.testing.assert_close(twin(values, marks, mask=mask), model(values, marks, mask=mask), rtol=0, atol=0)


def test_services_go_unnamed_now_and_then_in_training_alone():
    tasks = build(THREE).tasks
    torch.testing.assert_close(tasks(50), tasks.table[:3].repeat(50, 1), rtol=0, atol=0)
    tasks.train()
    unnamed = (tasks(400) == tasks.table[3]).all(-1).unflatten(0, (400, 3))
    assert torch.equal(unnamed.any(1), unnamed.all(1)), "all services of a sample go unnamed together"
    assert 0.1 < unnamed.double().mean() < 0.2


def test_nothing_known_of_any_service_is_still_a_number():
    values, marks, mask = inputs(THREE)
    memory = without_tasks(memory_of(THREE), [0, 1, 2])
    forecast = build(THREE)(torch.full_like(values, NAN), marks, mask=mask, memory=memory, quantiles=True)
    assert forecast.isfinite().all()
