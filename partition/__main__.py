"""Prepares data for training::

python -m partition extract --items items.parquet --text title,description --tfidf 256 --output text.parquet
python -m partition synthetic --output data/demo
python -m partition build --input data/demo --parts 4 --output prepared/demo
python -m partition verify prepared/demo
python -m partition stats prepared/demo --picture degrees.png
"""

from partition.cli import main

if __name__ == "__main__":
    main()
