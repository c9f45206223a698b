"""The systems of the paper's tables by name, as data: what each is a forecaster of, and how long it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmst.evaluation.tables import Entry


@dataclass(frozen=True)
class System:
    """One row of a table.

    Attributes:
        name: as cells and flags call it.
        label: as the table calls it.
        settings: fields of `ForecasterConfig`, but for those that the protocol and the seed decide.
        naive: a naive forecast.
        random: whether a seed changes it; one that no seed changes has one cell.
        untrained: the shipped weights as they are; nothing is fitted.
        published: forecasts of others, which the file of the series holds; nothing is computed.
        cities: whether it learns from simulated cities.
        reported: what the paper's tables call it.
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
    """A network of another paper, as its source has it and with the memory of the series."""
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
    # From random weights, since the shipped ones fit no ablated network; without companions, which all would share.
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
    """How long systems train, the same for all of a table.

    Attributes:
        name: as the caption calls it.
        training: fields of `TrainingConfig`.
        ablation: further ones of the systems that start from random weights and simulated cities.
        networks: settings of networks that are made smaller, by model.
        cities: simulated cities.
        note: for the caption.
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
    "QUICK, a look and no result: networks train for 5 epochs of 1,024 windows; STGCN, DCRNN, STAEformer, ConvLSTM and "
    "AST-MTL are smaller than their sources', 8 cities are simulated; what starts from random weights is under-trained",
)
