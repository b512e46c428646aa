"""Bodies of requests: what they may hold, and what is refused by name."""
