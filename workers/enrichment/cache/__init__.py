"""The cache of read pages: in this process, in Redis for all workers, and in a file.

    cache        a page from the nearest level that has it, else read once for all waiting jobs; stale if reading fails.
                 Level 1 (`Memory`): this process
    entry        a page, or the reason why it could not be read; its encoding and its lifetime
    levels       the interface of a level, and its wrapper: a timeout, a pause after each failure, and counters
    redis_level  level 2: all workers of a fleet
    disk         level 3: a file, which survives a restart
    flights      one reading of a page for all jobs that wait for it
    settings     a setting for each level; all three levels are optional

A level that fails counts as empty: no job ever fails because of the cache.
"""
