"""The reporting stage: what an operator publishes about a city's activity, and in which files."""
