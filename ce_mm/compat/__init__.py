"""What an older or slimmer OpenMMLab installation lacks; each piece switches itself off where it is not needed."""


def apply() -> None:
    """Give mmcv its missing operators, make mmengine read checkpoints as data and count CE's operators.

    A second call does nothing. Needs mmengine and mmcv: ``ce_mm.compat.requirements.require`` says clearly when they
    are absent.
    """
    # Imported here because `ce_mm.compat.requirements` must work where mmengine and mmcv do not.
    from ce_mm.compat.complexity_analysis import count_operators
    from ce_mm.compat.mmcv_ext import install_mmcv_ext
    from ce_mm.compat.safe_load import make_loading_safe

    install_mmcv_ext()
    make_loading_safe()
    count_operators()
