"""Text to speech: GLM-TTS, whose language model is a Llama; what comes before and behind it is in plain torch here."""
