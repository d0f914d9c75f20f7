"""Checks of a fleet and of this machine. Each finding names a fault and its fix in one line; no finding shows a secret.

    findings  a check, its findings, and the run of all checks in bounded time
    brokers   bootstrap servers, TLS, passwords, versions, advertised addresses, brokers' settings
    topics    missing topics, partitions, copies, leaders, configuration, operations that ACLs deny to a role
    fleet     work that no process reads, lost offsets, clocks, versions and names of workers, dead letters, endpoints

The console adds the checks that need the libraries of workers and of the gateway. A fault that a role names by itself
when it starts, such as a missing package or model, has no check: `postback worker --check` shows an engine's.
"""
