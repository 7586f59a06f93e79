"""``ce_mm train``, from a checkout."""
import sys

from ce_mm.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
