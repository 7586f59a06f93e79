"""``ce_mm inhibited``, from a checkout."""
import sys

from ce_mm.commands.inhibited import main

if __name__ == "__main__":
    sys.exit(main())
