"""Readers: one file a format, each returning the attributes of a `TrafficDataset`, which hands over to them."""
