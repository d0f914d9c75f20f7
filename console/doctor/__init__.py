"""`postback doctor`: the checks of `operators/doctor/`, and those that import packages of higher floors."""
