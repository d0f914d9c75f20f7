"""Checks of a fleet and of this machine. Each finding names a fault and its fix in one line; no finding shows a secret.

    findings  a check, its findings, and the run of all checks in bounded time
    brokers   bootstrap servers, TLS, passwords, versions, advertised addresses, brokers' settings
    topics    missing topics, partitions, copies, leaders, configuration, operations that ACLs deny to a role
    fleet     work that no process reads, lost offsets, clocks, versions and names of workers, dead letters, endpoints

`cli.operate` adds the checks that need the libraries of workers and of the gateway, and those of an engine.
"""
