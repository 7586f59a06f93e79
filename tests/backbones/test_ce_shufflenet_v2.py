import pytest

from ce_mm.backbones import CEShuffleNetV2
from ce_mm.layers import CENorm

# Half the channels of each stage, and the largest group of 16 or fewer that divides them.
WIDTHS = {
    0.5: [(24, 8), (48, 16), (96, 16)],
    1.0: [(58, 2), (116, 4), (232, 8)],
    1.5: [(88, 8), (176, 16), (352, 16)],
    2.0: [(122, 2), (244, 4), (488, 8)],
}


@pytest.mark.parametrize("widen_factor", WIDTHS)
def test_every_width_has_groups_that_divide_it(widen_factor):
    layers = [module for module in CEShuffleNetV2(widen_factor).modules() if isinstance(module, CENorm)]
    first, second, third = WIDTHS[widen_factor]
    assert [(ce.num_features, ce.bd.group_size) for ce in layers] == [first] * 4 + [second] * 8 + [third] * 4
