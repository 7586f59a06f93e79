"""Channel Equilibrium (CE, ICML 2020) for the OpenMMLab libraries.

``import ce_mm`` registers everything in mmengine's root registry, where every OpenMMLab library finds it; a config
needs ``custom_imports = dict(imports=['ce_mm'])``. What an incomplete installation cannot use says so when it is
reached for; ``ce_mm.ops`` needs torch alone.
"""
from ce_mm.registration import register
from ce_mm.version import __version__

register()

__all__ = ["__version__"]
