"""Using a trained model: rows, lists, neighbours, new users and items, indexes."""
