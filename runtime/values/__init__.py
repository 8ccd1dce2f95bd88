"""Values: how an activation is handed to a block, edited, and written back."""
