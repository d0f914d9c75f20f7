"""The routes, one file a subject. Each file has `routes(door) -> list[BaseRoute]`."""
