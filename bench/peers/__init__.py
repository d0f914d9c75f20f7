"""Other job systems on the same work as Postback, each in a folder of its own that holds its packages."""
