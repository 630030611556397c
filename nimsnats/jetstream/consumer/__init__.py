"""Consumers: who gets which message of a stream, and what has been acknowledged.

A consumer is part of its stream's replicated state machine. The way in is `set.ConsumerSet`, one for each stream.

- `config` what may be configured, `rules` which of it is allowed, `start` where a consumer begins
- `state` the replicated part, `entries` its changes as log entries, `retention` what acknowledgements let a stream drop
- `delivery` the leader's volatile view: what comes next, what is outstanding; `redelivery` when to try again
- `pull` with `request`, `waiting` and `priority`, and `push`: who gets it
- `consumer` one consumer on the wire; `info` and `advisory` what it says about itself
- `journal` what all consumers did in a tick; `alarm` their timer; `listening` the account's acknowledgement subjects
"""
