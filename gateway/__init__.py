"""The HTTP front door of a fleet: empty until it is built. It may use every floor below the console."""
