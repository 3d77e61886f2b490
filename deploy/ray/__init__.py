"""dfmr-server as a Ray Serve application."""
