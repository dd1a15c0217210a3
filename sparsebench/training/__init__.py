"""Training on Lightning: module, callbacks, checkpoints, loggers."""
