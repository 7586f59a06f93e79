"""``ce_mm norms``, from a checkout."""
import sys

from ce_mm.commands.norms import main

if __name__ == "__main__":
    sys.exit(main())
