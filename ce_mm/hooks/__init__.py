"""What runs inside a training loop."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv")

from ce_mm.hooks.channel_inhibition import ChannelInhibitionHook
from ce_mm.hooks.non_finite import NonFiniteHook
from ce_mm.hooks.safe_checkpoint import SafeCheckpointHook
from ce_mm.hooks.step_seeds import StepSeedsHook

__all__ = ["ChannelInhibitionHook", "NonFiniteHook", "SafeCheckpointHook", "StepSeedsHook"]
