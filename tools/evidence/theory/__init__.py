"""The paper's theory as functions that run: one claim a file, what holds of it, and where it fails.

`numbers.evidence` gathers what they say into one dict, `page` writes it up with pictures (docs/theory.md).
All in NumPy and float64; nothing here is used by the layers.
"""
