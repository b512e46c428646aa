"""Tasks of lm-evaluation-harness on the engine. Only ``adapter`` and ``run`` import the harness (an extra)."""
