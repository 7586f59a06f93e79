"""A piece of a run on trial: quietly, and with one error for whatever goes wrong in it."""
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from mmengine.registry import DefaultScope

from ce_mm.launching.config import PreflightError, one_line


@contextmanager
def trial(complaint: str, scope: str | None) -> Iterator[None]:
    """Run a block in a scope of mmengine's, without what it would print and log: that is for the run itself to say.

    Raises:
        PreflightError: the block fails; ``complaint``, why, and where.
    """
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            warnings.catch_warnings(action="ignore"),
            DefaultScope.overwrite_default_scope(scope),
        ):
            yield
    except Exception as error:  # whatever upstream's code or the user's makes of its settings
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PreflightError(f"{complaint}: {one_line(error)} ({place.filename}, line {place.lineno})") from error
    finally:
        logging.disable(disabled)
