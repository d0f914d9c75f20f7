"""The routes, one file for each subject. Each file has `routes(door) -> list[BaseRoute]`."""
