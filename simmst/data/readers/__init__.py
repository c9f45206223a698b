"""Readers: one file a format, each returning a `TrafficDataset`; `simmst.data.load` chooses among them by suffix."""
