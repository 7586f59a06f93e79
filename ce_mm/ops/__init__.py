"""Tensors in, tensors out: the operators of Channel Equilibrium, on torch alone.

A layer is three steps: :func:`moments` (one read of x), the coefficients (small tensors), :func:`group_affine` (one
read of x, one write of y).
"""
from ce_mm.ops.all_reduce import all_reduce_sum, all_reduce_sums, spans_processes
from ce_mm.ops.channel_equilibrium import (
    MIN_VARIANCE,
    batch_norm_affine,
    batch_statistics,
    covariance,
    equilibrium_affine,
    fit_group_size,
    reweighting,
)
from ce_mm.ops.equilibrium import Coefficients, Statistics, equilibrium
from ce_mm.ops.gate import Gate
from ce_mm.ops.group_affine import group_affine
from ce_mm.ops.maps import check_map
from ce_mm.ops.moments import Moments, compute_dtype, data_shift, moments, needed_shift
from ce_mm.ops.moving_average import Average, update_averages
from ce_mm.ops.multiply_adds import MULTIPLY_ADDS
from ce_mm.ops.newton_schulz import newton_schulz
from ce_mm.ops.sample_norms import (
    group_norm_affine,
    sample_covariance,
    statistics_over_samples,
    switchable_norm_affine,
    variation_inside_samples,
)

__all__ = [
    "MIN_VARIANCE",
    "MULTIPLY_ADDS",
    "Average",
    "Coefficients",
    "Gate",
    "Moments",
    "Statistics",
    "all_reduce_sum",
    "all_reduce_sums",
    "batch_norm_affine",
    "batch_statistics",
    "check_map",
    "compute_dtype",
    "covariance",
    "data_shift",
    "equilibrium",
    "equilibrium_affine",
    "fit_group_size",
    "group_affine",
    "group_norm_affine",
    "moments",
    "needed_shift",
    "newton_schulz",
    "reweighting",
    "sample_covariance",
    "spans_processes",
    "statistics_over_samples",
    "switchable_norm_affine",
    "update_averages",
    "variation_inside_samples",
]
