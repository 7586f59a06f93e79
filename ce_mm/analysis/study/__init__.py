"""A study on CIFAR-10: one small network and one recipe, with every norm and rectifier that the paper compares."""
