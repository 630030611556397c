"""`python -m nimsnats`."""

import sys

from nimsnats.cli import main

sys.exit(main())
