"""A look inside a model: each operation of a forward pass, attention, the logit lens, what single heads do."""
