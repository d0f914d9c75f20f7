"""A tenant's webhook endpoints, and the events for them.

`endpoints` has the rows, and the types of events. `fan_out` writes one record of `callback_events` for
each endpoint that takes an event. Delivery sends the events, with the retries and the guard of every callback.
"""
