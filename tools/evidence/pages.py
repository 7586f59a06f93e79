"""What all pages here share: the command that repeats them, tables, and files that are there whole or not at all."""
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from ce_mm.files import replacing


def command_line(piece: str, arguments: Sequence[str]) -> str:
    """The command that repeats a run, from the repository's root."""
    return shlex.join(["python", "-m", f"tools.evidence.{piece}", *arguments])


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of cells; the columns of the places in ``words`` are words, the others are numbers."""
    lines = [headings, ["---" if place in words else "---:" for place in range(len(headings))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], form: str) -> str:
    """Mean and, of several values, their standard deviation, in a form such as ``.2f``; ``+`` signs the mean alone."""
    text = format(mean(values), form)
    return f"{text} ± {format(stdev(values), form.lstrip('+'))}" if len(values) > 1 else text


def write(folder: Path, name: str, page: str, numbers: dict | None = None) -> None:
    """Write NAME.md, and NAME.json where there are numbers, into a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = dict(md=page) if numbers is None else dict(json=json.dumps(numbers, indent=1), md=page)
    for suffix, text in texts.items():
        with replacing(folder / f"{name}.{suffix}") as unfinished:
            unfinished.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
