"""Values: how an activation is shown to a block, edited, and put back."""
