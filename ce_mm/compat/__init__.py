"""What an older or slimmer OpenMMLab installation lacks; each piece switches itself off where it is not needed."""
