"""Starting a run: upstream's tools with ce_mm in front of them, and the checks that come first."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv")

from ce_mm.launching.front import launch

__all__ = ["launch"]
