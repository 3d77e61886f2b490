"""Quality against visual-token compression, measured over any OpenAI-compatible endpoint, with controls."""
