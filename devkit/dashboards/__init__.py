"""Draws dashboards from a Prometheus as pictures: `python -m devkit.dashboards PICTURES --prometheus URL`.

A dashboard is a file of deploy/grafana. A picture shows its panels in their places, with the answers that Grafana gets.

    model        a dashboard's panels and queries, from its file
    series       the queries' answers from Prometheus, with their legends
    units        numbers as Grafana writes them on an axis
    picture      one PNG for each dashboard
"""
