"""Re-weighting on problems with a known answer and on real series, and the cost of a step."""
