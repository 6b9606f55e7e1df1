"""TensorBoard, the event log, health rules and the final summary."""
