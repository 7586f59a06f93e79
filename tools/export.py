"""``ce_mm export``, from a checkout."""
import sys

from ce_mm.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
