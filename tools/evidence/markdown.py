"""Tables in GitHub's Markdown, for the pages that the studies and benchmarks write."""
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of cells; the columns of the places in ``words`` are words, the others are numbers."""
    lines = [headings, ["---" if place in words else "---:" for place in range(len(headings))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
