"""Views of runs and tables in Weights & Biases, made from a run's own files."""
