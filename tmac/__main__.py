"""`python -m tmac` is the command `tmac`."""

import sys

from tmac.cli import main

if __name__ == "__main__":
    sys.exit(main())
