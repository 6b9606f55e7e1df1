"""cm3_dist: distributed training of the CM3 multimodal recommender."""

__version__ = "0.1.0"
