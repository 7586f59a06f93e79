# What every CE config needs: the package, and an eye on batches that are not finite.
custom_imports = dict(imports=["ce_mm"], allow_failed_imports=False)
custom_hooks = [dict(type="NonFiniteHook")]
