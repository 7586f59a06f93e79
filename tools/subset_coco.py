"""``ce_mm subset``, from a checkout."""
import sys

from ce_mm.commands.subset import main

if __name__ == "__main__":
    sys.exit(main())
