"""Baseline networks from other papers, one file each, under one contract with Sim-MSTNet."""

from simmst.baselines.networks.ast_mtl import ASTMTL
from simmst.baselines.networks.config import NetworkConfig
from simmst.baselines.networks.conv_lstm import ConvLSTM
from simmst.baselines.networks.cslsl import CSLSL
from simmst.baselines.networks.dcrnn import DCRNN
from simmst.baselines.networks.informer import Informer
from simmst.baselines.networks.inputs import NetworkInput, View
from simmst.baselines.networks.itransformer import ITransformer
from simmst.baselines.networks.linear import DLinear, NLinear
from simmst.baselines.networks.lstm import LSTM
from simmst.baselines.networks.mttc import MTTC
from simmst.baselines.networks.network import Network
from simmst.baselines.networks.staeformer import STAEformer
from simmst.baselines.networks.stgcn import STGCN
from simmst.baselines.networks.transformer import Transformer

NETWORKS: dict[str, type[Network]] = {
    "dlinear": DLinear,
    "nlinear": NLinear,
    "lstm": LSTM,
    "transformer": Transformer,
    "informer": Informer,
    "itransformer": ITransformer,
    "convlstm": ConvLSTM,
    "stgcn": STGCN,
    "dcrnn": DCRNN,
    "staeformer": STAEformer,
    "mttc": MTTC,
    "ast-mtl": ASTMTL,
    "cslsl": CSLSL,
}

__all__ = [
    "ASTMTL",
    "CSLSL",
    "DCRNN",
    "LSTM",
    "MTTC",
    "NETWORKS",
    "STGCN",
    "ConvLSTM",
    "DLinear",
    "ITransformer",
    "Informer",
    "NLinear",
    "Network",
    "NetworkConfig",
    "NetworkInput",
    "STAEformer",
    "Transformer",
    "View",
]
