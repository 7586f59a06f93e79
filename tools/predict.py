"""``ce_mm predict``, from a checkout."""
import sys

from ce_mm.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
