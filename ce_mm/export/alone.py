"""An exported file in a process of its own, with its runtime alone: what runs there needs nothing of this package."""
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ce_mm.export import runtimes
from ce_mm.export.runtimes import Network, receive, send


@contextlib.contextmanager
def running_alone(kind: str, path: Path) -> Iterator[Network]:
    """Run a file where neither ce_mm nor OpenMMLab can be imported.

    Args:
        kind: its format.
        path: the file.

    Yields:
        The network; what fails in it is a RuntimeError.

    Raises:
        ValueError: the file cannot be loaded there.
    """
    command = [sys.executable, "-P", runtimes.__file__, kind, str(path)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)

        def network(pictures: Tensor) -> tuple[Tensor, ...]:
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                send(process.stdin, pictures)
            answer = _answer(process, said)
            if isinstance(answer, str):
                raise RuntimeError(answer)
            return answer

        try:
            fault = _answer(process, said)
            if fault:
                raise ValueError(
                    f"exported as {kind}, the network does not load in a process without ce_mm and OpenMMLab: {fault}"
                )
            yield network
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _answer(process: subprocess.Popen, said: BinaryIO) -> Any:
    """What the process answers, or, where it has ended, why."""
    answer = receive(process.stdout)
    if answer is not None:
        return answer
    code = process.wait()
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f"the process ended with status {code}" + (f" ({lines[-1]})" if lines else "")
