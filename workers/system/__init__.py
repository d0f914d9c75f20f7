"""The operating system: limits of memory and open files, and memory that other processes may not read."""
