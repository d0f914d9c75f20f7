"""Measurements of Postback, many of them beside a bare loop or with two values of a setting. See docs/EVIDENCE.md."""
