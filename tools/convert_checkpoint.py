"""``ce_mm convert``, from a checkout."""
import sys

from ce_mm.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
