"""The HTTP server of scripts/serve.py: OpenAI's endpoints, next words with bounds, and a page."""
