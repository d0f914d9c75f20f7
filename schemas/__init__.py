"""The wire format as models: records, requests, answers, headers and settings. Pure: no I/O, no clock, no network."""
