"""Why channels are inhibited behind CE on GN and LN: docs/cifar10/gn_ln.md."""
