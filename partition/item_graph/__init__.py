"""The item-item graph: nearest items per modality."""
