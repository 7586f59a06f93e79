# What every training here has, with CE or without, so that a comparison, also one of speed, is of CE alone: the
# package; checkpoints that a kill cannot spoil, and processes that start without a GPU; an eye on batches that are not
# finite; and random numbers by which a resumed training is the one that was interrupted.
custom_imports = dict(imports=["ce_mm", "ce_mm.training"], allow_failed_imports=False)
custom_hooks = [dict(type="NonFiniteHook"), dict(type="StepSeedsHook")]
