"""The radio stage: which sectors serve which cells, and how well."""
