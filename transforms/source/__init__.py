"""From the text of a block to the code of its program."""
