"""`python -m macluster`: the same as the command `macluster`."""

import sys

from .cli import main

sys.exit(main())
