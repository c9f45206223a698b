"""``python -m simmst`` is the ``simmst`` command."""

import sys

from simmst.commands.main import main

sys.exit(main())
