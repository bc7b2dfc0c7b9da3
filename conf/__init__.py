"""Settings: Hydra yaml, the command line, and what a person sees on the screen."""
