"""Preparation: from raw files to a folder of parts that any number of ranks can train on."""
