"""The cache of read pages: in this process, in Redis for all workers, and in a file.

    cache        a page from the nearest level that has it, else read once for all waiting jobs; stale if reading fails.
                 Level 1 (`Memory`): this process
    entry        a page, or the reason why it could not be read; its encoding and its lifetime
    levels       the interface of a level, its wrapper (a timeout, a pause after each failure, and counters), and
                 level 3: a file, which survives a restart
    redis_level  level 2: all workers of a fleet

A level that fails counts as empty: no job ever fails because of the cache.
"""
