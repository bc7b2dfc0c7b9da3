"""Distributed training: the process group, DDP, FSDP2, and the signal that stops all ranks."""
