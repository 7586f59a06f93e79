"""``ce_mm plot``, from a checkout."""
import sys

from ce_mm.commands.plot import main

if __name__ == "__main__":
    sys.exit(main())
