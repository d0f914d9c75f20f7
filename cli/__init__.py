"""The `postback` command. The command imports all other packages, and no package imports the command."""
