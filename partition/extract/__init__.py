"""From a raw catalogue, its texts and pictures, to feature rows: `python -m partition extract`."""
