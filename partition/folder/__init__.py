"""The prepared folder on disk: manifest, arrays, integrity, verification, writing."""
