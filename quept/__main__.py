"""`python -m quept`: the command line."""

import sys

from quept.cli import main

if __name__ == "__main__":
    sys.exit(main())
