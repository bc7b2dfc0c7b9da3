"""Display: what a person sees."""
