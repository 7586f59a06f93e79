"""``ce_mm eval``, from a checkout."""
import sys

from ce_mm.commands.eval import main

if __name__ == "__main__":
    sys.exit(main())
