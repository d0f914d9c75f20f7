"""`postback doctor`: the checks of `operators/doctor/`, and those that need higher floors."""
