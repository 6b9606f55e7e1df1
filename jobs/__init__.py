"""Job files: one YAML per experiment, and the demo."""
