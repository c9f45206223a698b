"""The traffic stage: what users do, cell by cell and slot by slot."""
