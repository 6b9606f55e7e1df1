"""CM3's forward pass: encoder and fusion of items, sharded tables of users, and what becomes of both."""
