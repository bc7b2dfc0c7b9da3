"""What is measured by python -m scripts.bench."""
