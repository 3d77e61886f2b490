"""Grafana boards as code: ``python -m deploy.dashboards`` writes them, with ``--check`` it holds them to the server."""
