"""`python -m nnsight_dsl`."""

import sys

from nnsight_dsl.cli import main

if __name__ == "__main__":
    sys.exit(main())
