"""The names of a detector's classes, by which labels are told, as its config has them."""

import sys
from contextlib import redirect_stdout
from pathlib import Path


def read_classes(config: Path) -> tuple[str, ...]:
    """The class names of a config's test data set, as mmdet takes them for its evaluation.

    Raises:
        ValueError: the config cannot be read, or has no test data set that names its classes.
    """
    # Imported here, as nothing else of an evaluation needs the OpenMMLab libraries.
    from mmengine.registry import DATASETS, DefaultScope

    from ce_mm.launching.config import default_scope, one_line, read_config

    with redirect_stdout(sys.stderr):  # on which a table may be wanted alone, and mmdet prints as it is imported
        cfg = read_config(str(config))
        dataset = cfg.get("test_dataloader", {}).get("dataset", {})
        while inner := dataset.get("dataset", dataset.get("datasets")):  # a wrapper has its first data set's names
            dataset = inner[0] if isinstance(inner, list | tuple) else inner
        try:
            with DefaultScope.overwrite_default_scope(default_scope(cfg)):
                built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True})
            return tuple(built.metainfo["classes"])
        except Exception as error:  # whatever the data set's own code makes of its arguments
            raise ValueError(
                f"{config}: the classes of its test data set are unknown ({one_line(error)}); expected a "
                "test_dataloader with a data set that has metainfo with classes"
            ) from error
