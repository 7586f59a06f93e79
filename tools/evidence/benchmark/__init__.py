"""Times and memory of CE beside other layers: docs/benchmark."""
