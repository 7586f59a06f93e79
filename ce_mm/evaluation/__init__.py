"""What a detector's results are worth: COCO evaluation of results files, needing no OpenMMLab library."""

from ce_mm.evaluation.annotations import AnnotationError, check_annotation_file, read_annotations
from ce_mm.evaluation.coco import METRICS, evaluate_coco
from ce_mm.evaluation.results_file import ResultsError

__all__ = [
    "METRICS",
    "AnnotationError",
    "ResultsError",
    "check_annotation_file",
    "evaluate_coco",
    "read_annotations",
]
