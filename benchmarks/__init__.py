"""What the program is compared with, and what does the comparing. Nothing in the product imports this."""
