"""What outsiders, older versions and other nodes may send, and that it harms nobody."""
