"""Raft: many replicated logs, each driving one state machine.

`machine.py` is what users of this room see (entries, snapshots, the `StateMachine` they implement, the
`Group` handle they hold); `refusals.py` is what no member could apply; `core.py` is the pure consensus
algorithm; `host.py` drives the groups of a node on one timer and disk.
"""
