"""``ce_mm ablation``, from a checkout."""
import sys

from ce_mm.commands.ablation import main

if __name__ == "__main__":
    sys.exit(main())
