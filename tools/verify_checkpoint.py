"""``ce_mm verify``, from a checkout."""
import sys

from ce_mm.commands.verify import main

if __name__ == "__main__":
    sys.exit(main())
