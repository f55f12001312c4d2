"""The terms of Social-R1 (arXiv 2603.09249)."""
