"""Megatron's distributed checkpoint format "torch_dist", read and written without torch."""
