"""Assigns users and items to parts."""
