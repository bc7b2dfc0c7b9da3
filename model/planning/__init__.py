"""Planning: how long a run takes and what it needs."""
