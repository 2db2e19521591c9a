"""`python -m dalle_2` is `dalle2`."""

import sys

from dalle_2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
