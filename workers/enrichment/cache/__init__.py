"""What was read of pages is kept for the jobs that come: in this process, in Redis for all workers, in a file.

    cache        a page from the nearest level that has it, else read once for all who wait; stale where reading fails
    entry        what is kept of a page, or of why it could not be read; how it is written down, and for how long
    levels       one level as the cache sees it: bounded in time, left alone for a while after a failure, counted
    memory       level 1: this process
    redis_level  level 2: all workers of a fleet
    disk         level 3: a file, which survives a restart
    flights      one reading of a page, however many jobs wait for it
    settings     a level is a setting; none of the three is needed

A level that fails is a level that has nothing: no job ever fails for the cache.
"""
