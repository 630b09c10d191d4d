"""What a model is: its shapes and where its files lie, without loading it."""
