"""The gateway's database: SQLite by default, PostgreSQL if configured.

`tables` declares the tables. `store` has one writer thread with group commit, and reads in threads.
The package itself imports nothing, so that commands read `settings` without a database library.
"""
