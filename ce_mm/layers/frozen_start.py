"""What is said of a training in which CE works with averages that never moved and never will."""
import functools
import warnings


@functools.cache
def warn_of_frozen_start() -> None:
    """Say it, once in a process."""
    warnings.warn(
        "CE trains in eval mode, and its moving averages are at their starting values, which no batch has moved: "
        "its decorrelation is the identity. Set norm_eval=False and frozen_stages=-1 in the backbone, or load "
        "weights that were trained with CE (those of the plain network have no averages of CE's)",
        stacklevel=2,
    )
