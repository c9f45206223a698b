"""The ``simmst`` command: one file a command, listed in `simmst.commands.main`.

Importing a command is cheap: torch and all that needs it are imported when the command runs.
"""
