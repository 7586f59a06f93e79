"""``ce_mm shapes``, from a checkout."""
import sys

from ce_mm.commands.shapes import main

if __name__ == "__main__":
    sys.exit(main())
