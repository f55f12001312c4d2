"""Offline conversion between Hugging Face folders and Megatron's torch_dist checkpoints: planned, proved, streamed."""
