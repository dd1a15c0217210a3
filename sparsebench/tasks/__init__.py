"""Tasks: what is done with a model; each module has ``prepare(cfg)`` and ``run(...)``."""
