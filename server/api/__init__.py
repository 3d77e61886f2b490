"""HTTP: vLLM's OpenAI app with a ``dfmr`` object in requests and responses, and routes of our own. No numerics."""
