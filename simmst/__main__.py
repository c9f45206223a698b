"""``python -m simmst`` is the ``simmst`` command."""

import sys

from simmst.cli import main

sys.exit(main())
