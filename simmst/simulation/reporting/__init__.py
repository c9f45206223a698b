"""The reporting stage: what an operator publishes of a city's activity, and in which files."""
