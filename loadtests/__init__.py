"""Speed against compression: load, baselines in the same run, and the distance to the limit."""
