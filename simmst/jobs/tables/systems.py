"""The systems of the paper's tables: their settings as forecasters, and the effort of their training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmst.evaluation.tables import Entry


@dataclass(frozen=True)
class System:
    """One row of a table.

    Attributes:
        name: name in cells and flags.
        label: name in the table.
        settings: fields of `ForecasterConfig`, except those that the protocol and the seed decide.
        naive: whether it is a naive forecast.
        random: whether a seed changes it; a system that no seed changes has one cell.
        untrained: whether it is the shipped weights without any fit.
        published: whether it is a set of published forecasts in the file of the series, so that nothing is computed.
        cities: whether it learns from simulated cities.
        reported: name in the paper's tables.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    naive: bool = False
    random: bool = True
    untrained: bool = False
    published: bool = False
    cities: bool = False
    reported: str | None = None

    @property
    def entry(self) -> Entry:
        """The row of the table."""
        ours = not self.published and "model" not in self.settings
        return Entry(self.name, self.label, self.naive, self.reported, ours)


def _naive(name: str) -> System:
    return System(name, name, {"model": name}, naive=True, random=False)


def _network(name: str, label: str) -> tuple[System, System]:
    """Return a network of another paper twice: as in its source, and with the memory of the series."""
    plain = System(name, label, {"model": name}, reported=name)
    told = System(f"{name}+memory", f"{label}, with the memory", {"model": name, "network": {"memory": True}})
    return plain, told


def _ours(label: str) -> tuple[System, ...]:
    return (
        System("shipped-alone", f"{label}, shipped weights alone", {"combine": False}, random=False, untrained=True),
        System("shipped", f"{label}, shipped weights, no training", {}, random=False, untrained=True),
        System("fit", f"{label}, adapted (fit)", {}),
        System(
            "sim2real",
            "STNet-Sim2RealBO" if label == "STNet" else label + " (Sim2RealBO)",
            {"solver": "cutting-plane"},
            cities=True,
            reported="sim2real",
        ),
    )


def _ablation(name: str, label: str, network: Mapping[str, Any]) -> System:
    # Ablations start from random weights, because the shipped ones fit no ablated network. They have no companions,
    # because these would be the same for all.
    settings = {"solver": "cutting-plane", "start": "scratch", "combine": False, "network": dict(network)}
    return System(name, label, settings, cities=True, reported=name)


_SIMPLE = (
    *map(_naive, ("persistence", "seasonal-naive-day", "seasonal-naive-week", "hour-of-week-mean", "moving-average")),
    System("ridge-lags", "ridge, lags", {"model": "ridge-lags"}, random=False),
    System("ridge", "ridge, with the memory", {"model": "ridge"}, random=False),
    System("gradient-boosting", "gradient boosting, with the memory", {"model": "gradient-boosting"}, random=False),
    *_network("dlinear", "DLinear"),
    *_network("nlinear", "NLinear"),
)

TABLES: dict[int, tuple[System, ...]] = {
    1: (
        *_SIMPLE,
        System("fedgcc", "FedGCC, as published", random=False, published=True),
        *_network("lstm", "LSTM"),
        *_network("transformer", "Transformer"),
        *_network("informer", "Informer"),
        *_network("itransformer", "iTransformer"),
        *_network("convlstm", "ConvLSTM"),
        *_network("stgcn", "STGCN"),
        *_network("dcrnn", "DCRNN"),
        *_network("staeformer", "STAEformer"),
        *_ours("STNet"),
    ),
    2: (
        *_SIMPLE,
        *_network("mttc", "MTTC"),
        *_network("ast-mtl", "AST-MTL"),
        *_network("cslsl", "CSLSL"),
        *_ours("Sim-MSTNet"),
    ),
    3: (
        *_SIMPLE,
        _ablation("oInter", "oInter", {"interaction": False}),
        _ablation("oSpatial", "oSpatial", {"spatial": False}),
        _ablation("Average", "Average", {"task_weights": "average"}),
        _ablation("full", "Sim-MSTNet, from random weights", {}),
    ),
}


@dataclass(frozen=True)
class Effort:
    """Effort of the training, the same for all systems of a table.

    Attributes:
        name: name in the caption.
        training: fields of `TrainingConfig`.
        ablation: further fields for systems that start from random weights and simulated cities.
        networks: settings that make networks smaller, by model.
        cities: number of simulated cities.
        note: note for the caption.
    """

    name: str
    training: Mapping[str, Any]
    ablation: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    cities: int
    note: str


FULL = Effort("full", {}, {"epochs": 40}, {}, 40, "")
QUICK = Effort(
    "quick",
    {
        "epochs": 5,
        "samples_per_epoch": 1024,
        "validation_samples": 512,
        "batch_size": 32,
        "learning_rate": 0.003,
        "adapt_epochs": 2,
        "samples_per_city": 32,
        "reweighting": {"steps": 20, "simulated_batch": 64, "real_batch": 64},
    },
    {},
    {
        "dcrnn": {"width": 16, "layers": 1},
        "stgcn": {"width": 16, "bottleneck": 8},
        "staeformer": {
            **dict.fromkeys(("input_width", "day_width", "week_width", "adaptive_width"), 8),
            **{"layers": 1, "num_heads": 2, "feedforward": 32},
        },
        "convlstm": {"width": 16, "layers": 1},
        "ast-mtl": {"width": 32},
    },
    8,
    "QUICK, a first look and not a result: networks train for 5 epochs of 1,024 windows; STGCN, DCRNN, STAEformer, "
    "ConvLSTM and AST-MTL are smaller than in their sources, 8 cities are simulated; systems that start from random "
    "weights are under-trained",
)
