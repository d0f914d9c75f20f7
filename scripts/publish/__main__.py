"""Writes the reference pages and the published schemas: `python -m scripts.publish`."""

from scripts.publish import reference, wire_schemas

wire_schemas.main()
reference.main()
