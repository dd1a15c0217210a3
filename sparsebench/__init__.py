"""sparsebench: config-driven experiments in sparse training, with figures that can be trusted."""
