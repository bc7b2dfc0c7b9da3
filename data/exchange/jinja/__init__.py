"""A small part of Jinja, evaluated on messages whose texts are unknown."""
