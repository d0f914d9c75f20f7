"""`postback doctor`: the checks of `operators/doctor/`, and checks with packages that `operators` may not import."""
