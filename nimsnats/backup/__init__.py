"""Backups, and data directories of nodes that do not run: `nimsnats backup`, `restore`, `verify`, `recover`, `export`.

Everything but the off-line checks works over a NATS connection with the JetStream API, against this server and
nats-server 2.15 alike. A backup is a directory with one directory a stream:

    <stream>/manifest.json           configuration, state, consumers, the list of segments; written last, replaced as a
                                     whole, with a SHA-256 over itself and over every segment
    <stream>/messages-000001.nims    segments: chunks of about a megabyte, each compressed and with its own CRC

A segment begins with a chunk that tells of which stream it is, so that an interrupted backup is resumed where it
stopped: what is whole on disk is kept, and the server is asked for what comes after it. The same brings a finished
backup up to date. Every manifest is one moment of its stream: messages that have gone since an earlier segment was
written are named in it and left out of a restore. A server that cannot send a part (nats-server) sends everything, and
the older segments go once the new manifest is there.

`files.py` knows the directory, `link.py` the connection, `take.py` and `put.py` the two directions, `export.py` other
forms of messages, `datadir.py` the data directory of a node that does not run, `recover.py` what makes it go on alone.
"""
