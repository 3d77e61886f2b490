"""Running the server: what is generated from its metrics, and what starts it in a container or a cluster."""
