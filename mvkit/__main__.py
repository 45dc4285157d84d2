"""`python -m mvkit`: the command line."""

import sys

from mvkit.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
