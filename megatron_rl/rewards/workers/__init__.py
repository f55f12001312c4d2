"""Where rewards run: worker processes with deadlines, and the trainer's end of them."""
