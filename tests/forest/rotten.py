"""A module that cannot be imported politely."""

raise SystemExit("this module wants to end the process")
