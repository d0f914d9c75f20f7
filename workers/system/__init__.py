"""The operating system: limits of memory and open files, and protection of memory from other processes."""
