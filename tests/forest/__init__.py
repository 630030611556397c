"""The forest on a real server: on the Go nats-server as the oracle, and on our own."""
