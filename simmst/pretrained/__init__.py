"""The weights that ship with the package: a network that has learned from simulated cities alone."""

from simmst.pretrained.weights import Pretrained, load_pretrained, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]
