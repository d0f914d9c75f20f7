"""Grafana's dashboards: `python -m scripts.dashboards` writes them, `scripts.dashboards.pictures` draws them."""
