"""Public benchmarks: items from local copies of their files, and their official scoring."""
