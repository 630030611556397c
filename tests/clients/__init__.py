"""Round trips of unmodified client libraries: what they do against the Go server, they do here."""
