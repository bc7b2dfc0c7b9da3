"""Preparation: documents and a tokenizer to token shards with a manifest."""
