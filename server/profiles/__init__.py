"""Named policies: their file, which of them is in force for a request, and whether pictures still are as calibrated."""
