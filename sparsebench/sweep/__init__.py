"""Sweeps and tables: grids of runs, their results, statistics and how they are shown."""
