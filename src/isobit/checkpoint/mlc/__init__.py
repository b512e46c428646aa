"""Models that MLC-LLM has converted: shards of raw bytes, a cache file that lists their tensors, a configuration."""
