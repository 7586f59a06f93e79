from torch import nn

from ce_mm.backbones.rectifier import replace_rectifiers


def test_every_relu_becomes_another_and_works_in_place_where_it_did():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(inplace=True), nn.ReLU6()))
    replace_rectifiers(network, dict(type="LeakyReLU", negative_slope=0.2))
    first, second, other = network[0], *network[1]
    assert [type(layer) for layer in (first, second, other)] == [nn.LeakyReLU, nn.LeakyReLU, nn.ReLU6]
    assert (first.negative_slope, first.inplace, second.inplace) == (0.2, False, True)


def test_act_cfg_has_the_last_word_on_working_in_place():
    network = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True))
    replace_rectifiers(network, dict(type="ELU", inplace=False))
    assert [layer.inplace for layer in network] == [False, False]
