"""``ce_mm draw``, from a checkout."""
import sys

from ce_mm.commands.draw import main

if __name__ == "__main__":
    sys.exit(main())
