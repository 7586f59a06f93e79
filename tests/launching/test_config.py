"""What is tried in front of a run says nothing, and the run says all that it has to say."""
import logging

from mmengine.logging import MMLogger

from ce_mm.launching.config import silence


def test_mmengine_s_log_is_silent_inside_and_only_there(capfd):
    logger = MMLogger.get_current_instance()
    for level in (logging.INFO, logging.WARNING):
        with silence():
            logger.log(level, "inside, at first")
        logger.log(level, "behind")
        with silence():
            logger.log(level, "inside, once more")
            print("on stdout")
    said = "".join(capfd.readouterr())
    assert said.count("behind") == 2 and "inside" not in said and "stdout" not in said
