"""Distributed training: process group, DDP, FSDP2."""
