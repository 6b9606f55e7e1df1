"""Typed settings: what they are, how they are loaded, and the page that lists them."""
