"""`postback doctor`: the checks of `operators/doctor/`, and checks that import packages above `operators`."""
