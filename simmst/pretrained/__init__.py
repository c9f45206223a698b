"""The shipped weights: those of a network trained on simulated cities alone."""

from simmst.pretrained.weights import Pretrained, load_pretrained, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]
