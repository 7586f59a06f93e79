"""Tensors in, tensors out: the operators of Channel Equilibrium, on torch alone.

A layer is three steps: :func:`moments` (one read of x), :func:`coefficients` (small tensors), :func:`group_affine` (one
read of x, one write of y).
"""
from ce_mm.ops.all_reduce import all_reduce_sums, spans_processes
from ce_mm.ops.backends import choose
from ce_mm.ops.base_norms import batch_norm_affine
from ce_mm.ops.coefficients import UNKNOWN, coefficients, equilibrium_affine
from ce_mm.ops.custom_op import check_map, full_precision
from ce_mm.ops.decorrelation import (
    covariance,
    fit_group_size,
    newton_schulz,
    pooled_moments,
    sample_covariance,
    variation_inside_samples,
)
from ce_mm.ops.group_affine import RELU, RELU6, group_affine
from ce_mm.ops.moments import batch_statistics, compute_dtype, data_shift, moments, needed_shift
from ce_mm.ops.multiply_adds import MULTIPLY_ADDS
from ce_mm.ops.reweighting import MIN_VARIANCE, Gate, bessel, reweighting
from ce_mm.ops.sample_norms import group_norm_affine, statistics_over_samples, switchable_norm_affine
from ce_mm.ops.types import Average, Coefficients, Moments, Statistics
from ce_mm.ops.usual import Usual, as_usual, usual_layer

__all__ = [
    "MIN_VARIANCE",
    "MULTIPLY_ADDS",
    "RELU",
    "RELU6",
    "UNKNOWN",
    "Average",
    "Coefficients",
    "Gate",
    "Moments",
    "Statistics",
    "Usual",
    "all_reduce_sums",
    "as_usual",
    "batch_norm_affine",
    "batch_statistics",
    "bessel",
    "check_map",
    "choose",
    "coefficients",
    "compute_dtype",
    "covariance",
    "data_shift",
    "equilibrium_affine",
    "fit_group_size",
    "full_precision",
    "group_affine",
    "group_norm_affine",
    "moments",
    "needed_shift",
    "newton_schulz",
    "pooled_moments",
    "reweighting",
    "sample_covariance",
    "spans_processes",
    "statistics_over_samples",
    "switchable_norm_affine",
    "usual_layer",
    "variation_inside_samples",
]
