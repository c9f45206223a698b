"""Readers of file formats, one module for each, which return the attributes of a `TrafficDataset`."""
