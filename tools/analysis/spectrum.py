"""``ce_mm spectrum``, from a checkout."""
import sys

from ce_mm.commands.spectrum import main

if __name__ == "__main__":
    sys.exit(main())
