"""`python -m msefpn` is `msefpn`."""

import sys

from msefpn.cli import main

if __name__ == "__main__":
    sys.exit(main())
