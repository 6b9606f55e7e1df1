"""Reads interaction logs, catalogues and features from files."""
