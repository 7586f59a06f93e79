"""What is to be tested and measured on a GPU, in slices that fit into a short loan of one."""
