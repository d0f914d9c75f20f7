"""`postback demo`: all of Postback at once on this machine, from a question to its verified callback."""
