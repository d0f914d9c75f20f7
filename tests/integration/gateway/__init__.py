"""The gateway as its users meet it: a real process, real sockets, a real store and a real broker."""
