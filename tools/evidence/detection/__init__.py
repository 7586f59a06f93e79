"""CE against BN in detection, on the demo's chain."""
