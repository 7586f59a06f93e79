"""What compiled mmcv's operators: nothing did. Reports of the environment ask."""


def get_compiler_version() -> str:
    """``n/a``, as ``mmcv.utils.collect_env`` says where ``mmcv._ext`` is absent."""
    return "n/a"


def get_compiling_cuda_version() -> str:
    """``n/a``, as ``mmcv.utils.collect_env`` says where ``mmcv._ext`` is absent."""
    return "n/a"
