"""The HTTP server: OpenAI's routes and a few of its own, over one engine. Needs the extra ``isobit[serve]``."""
