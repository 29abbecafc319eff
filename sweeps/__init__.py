"""Grids of runs and what is compared over them."""
