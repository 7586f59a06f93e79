"""Times and memory of CE beside other layers: docs/benchmark."""
from ce_mm.compat.torch_alone import stand_in

stand_in()
