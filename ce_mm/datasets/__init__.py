"""Small data sets to try things on: drawn ones, and a few pictures of a large one."""
