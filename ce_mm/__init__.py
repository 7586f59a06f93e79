"""Channel Equilibrium (CE, ICML 2020) for the OpenMMLab libraries.

``import ce_mm`` has everything registered in mmengine's root registry, where every OpenMMLab library finds it; a config
needs ``custom_imports = dict(imports=['ce_mm'])``. It imports none of them: ``ce_mm.ops`` and ``ce_mm.layers`` need
torch alone.
"""
from ce_mm.registration import register
from ce_mm.version import __version__

register()

__all__ = ["__version__"]
