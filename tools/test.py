"""``ce_mm test``, from a checkout."""
import sys

from ce_mm.commands.test import main

if __name__ == "__main__":
    sys.exit(main())
