"""The drawing of the idea: the same file every time, with a ground of its own, and no text beyond its edges."""
import sys
from xml.etree import ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from tools.evidence import idea


def test_it_is_the_same_file_every_time(tmp_path, monkeypatch):
    drawn = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "argv", ["idea", "--out", str(tmp_path / name)])
        assert idea.main() == 0
        drawn.append((tmp_path / name / "idea.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert ElementTree.fromstring(drawn[0]).tag.endswith("svg")


def test_it_can_be_read_on_dark_pages_too():
    assert idea.draw().get_facecolor() == (1, 1, 1, 1)


def test_no_text_leaves_the_drawing():
    figure = idea.draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 15
    for text in texts:
        x0, y0, x1, y1 = text.get_window_extent(renderer).extents
        assert figure.bbox.x0 <= x0 < x1 <= figure.bbox.x1 and figure.bbox.y0 <= y0 < y1 <= figure.bbox.y1
