"""The client side: programs that leave the user's process."""
