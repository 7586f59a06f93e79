"""What a conversion did, for people: names by their pattern, with counts, instead of hundreds of names."""
import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

#: More lines than these become fewer, by writing N for all numbers.
_MOST = 10


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with ``dry_run`` would do; ``str()`` of it is for people."""

    source: Path
    layout: str
    #: Of the backbone: type and arguments.
    config: dict
    #: Name in the source -> name in the file written.
    mapped: dict[str, str]
    #: Names in the file written for which the source has no value: CE at its starting values.
    initialised: list[str]
    #: Names in the source whose exact values are kept in the metadata, for the way back.
    kept: list[str]
    #: Names in the source that the target has no place for.
    left_out: list[str]
    #: False where settings of CE that leave no trace in weights were taken to be the defaults.
    settings_known: bool
    #: Of the weights' file, in hexadecimal digits.
    sha256: str
    #: The weights, and the config that fits them (the authors' layout has none).
    files: tuple[Path, ...]
    dry_run: bool

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config.items() if name != "type")
        lines = [f"{self.source}: layout {self.layout}, network {self.config['type']}({arguments})"]
        for what, names in (
            ("mapped", [_renaming(*pair) for pair in self.mapped.items()]),
            ("initialised, as the source has none", self.initialised),
            ("kept in the metadata, for the way back", self.kept),
            ("left out", self.left_out),
        ):
            if names:
                lines += [f"{len(names)} tensors {what}:", *_counted(names)]
        if not self.settings_known:
            lines.append(
                "note: the source records no config; settings of CE that leave no trace in weights (correction, "
                "iterations, max_pool, ...) are taken to be the defaults"
            )
        lines.append(f"checked: {self.config['type']} loads all of it, and one forward pass is finite")
        lines.append(f"SHA-256 {self.sha256}")
        return "\n".join([*lines, *(f"{'would write' if self.dry_run else 'wrote'} {path}" for path in self.files)])


def _renaming(old: str, new: str) -> str:
    """A renaming with ``*`` for what both names have."""
    if old == new:
        return "* unchanged"
    old, new = old.split("."), new.split(".")
    for first, second, size in reversed(SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()):
        if size:
            old[first : first + size] = new[second : second + size] = ["*"]
    return f"{'.'.join(old)} → {'.'.join(new)}"


def _counted(lines: list[str]) -> list[str]:
    """Equal lines as one with their number."""
    if len(set(lines)) > _MOST:
        lines = [re.sub(r"\d+", "N", line) for line in lines]
    return [f"{count:6d}  {line}" for line, count in Counter(lines).items()]
