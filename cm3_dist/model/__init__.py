"""CM3's forward pass: item encoder and fusion, sharded user tables, and the model that joins them."""
