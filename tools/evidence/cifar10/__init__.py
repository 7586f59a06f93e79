"""CE against other norms and rectifiers on CIFAR-10: docs/cifar10."""
