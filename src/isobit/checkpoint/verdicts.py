"""What can become of a checkpoint in another engine, from best to worst; who refuses computes nothing wrong."""

LOADS, DIFFERS, GARBAGE, REFUSES = VERDICTS = ("loads", "activations not rounded", "garbage", "refuses")
SOME = "some were run"  # of other families, or of mixtures of experts: docs/interop.md names them
