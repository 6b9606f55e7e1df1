"""Encodes the texts and images of a raw catalogue into feature rows: `python -m partition extract`."""
