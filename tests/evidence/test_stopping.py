"""Whatever stops a study of tools/evidence, it ends alike."""
import signal

import pytest

from tools.evidence.stopping import resumable


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_cleans_up_says_how_to_go_on_and_leaves_the_signal_as_it_was(end, capsys):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    @resumable
    def main():
        try:
            signal.raise_signal(end)
        finally:
            cleaned.append(True)

    assert main() == 130 and cleaned
    assert capsys.readouterr().err == "Interrupted. Run the same command again to go on.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_not_stopped_it_ends_with_its_own_status():
    assert [resumable(lambda status=status: status)() for status in (0, 1, 2)] == [0, 1, 2]
