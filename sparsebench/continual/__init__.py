"""Continual learning: streams of tasks, replay buffers, and what is measured of a stream."""
