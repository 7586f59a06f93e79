"""Channel Equilibrium for the OpenMMLab libraries: pure Python, nothing to compile when it is installed."""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = \"(.+)\"", (HERE / "ce_mm" / "version.py").read_text()).group(1)


class BuildWithMim(build_py):
    """Put configs, tools and the model index into ce_mm/.mim, where mim looks for those of an installed package."""

    def run(self) -> None:
        """As build_py's."""
        super().run()
        if self.editable_mode:
            self._index_beside_packages()
            return
        target = Path(self.build_lib) / "ce_mm" / ".mim"
        left_out = shutil.ignore_patterns("__pycache__", "evidence")  # tools/evidence writes the project's own pages
        for folder in ("configs", "tools"):
            shutil.copytree(HERE / folder, target / folder, dirs_exist_ok=True, ignore=left_out)
        shutil.copy(HERE / "model-index.yml", target)

    def _index_beside_packages(self) -> None:
        """The model index of an editable installation, where mim looks for it: beside the installed packages."""
        target = Path(self.get_finalized_command("install").install_lib) / "ce_mm" / ".mim"
        for path in (HERE / "model-index.yml", *HERE.glob("configs/*/metafile.yml")):
            copied = target / path.relative_to(HERE)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)


setup(
    name="ce_mm",
    cmdclass=dict(build_py=BuildWithMim),
    version=VERSION,
    description="Channel Equilibrium Networks (Shao et al., ICML 2020) as a plugin for the OpenMMLab libraries",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ce_mm", "ce_mm.*"]),
    # An editable installation is then this folder on the path: a finder would come after that folder of mim's.
    package_dir={"": "."},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11,<3",
        "torchvision>=0.26,<1",
        "numpy>=1.26,<3",
        "pycocotools>=2.0.7,<3",
        "safetensors>=0.5,<1",
        "matplotlib>=3.8,<4",
        "pillow>=10",
        "tqdm>=4.66,<5",
    ],
    entry_points=dict(console_scripts=["ce_mm = ce_mm.__main__:main"]),
    extras_require={
        # What compiles the passes over a map for the CPU it runs on; a GPU needs none of it.
        "numba": ["numba>=0.62,<1"],
        # The maintained continuation of OpenMMLab under the same import names.
        "onedl": [
            "onedl-mmengine>=0.10.12,<0.11",
            "onedl-mmcv>=2.3.6,<2.4",
            "onedl-mmdetection>=3.5.1,<3.6",
            "onedl-mmpretrain>=1.3.6,<1.4",
        ],
        # The original distributions; mmengine 0.10.7 still imports pkg_resources.
        "openmmlab": [
            "mmengine>=0.10.7,<0.11",
            "mmcv-lite>=2.1.0,<2.2",
            "mmdet>=3.3.0,<3.4",
            "mmpretrain>=1.2.0,<1.3",
            "setuptools<81",
        ],
        "export": ["onnx>=1.18,<2", "onnxruntime>=1.22,<2", "onnxscript>=0.5,<1"],
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6", "mypy>=2,<3", "timm>=1.0,<2"],
    },
)
