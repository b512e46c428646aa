"""What families have beside a decoder: towers that see and hear, a file a family. transformers is imported here alone."""
