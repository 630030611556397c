"""Streams as archives: written out while they are in use, and made of one again.

`view.py` holds a stream still at one entry of its log, `outflow.py` sends it, `loader.py` makes a stream of an archive,
`inflow.py` receives one, `consumers.py` is the form in which a consumer travels.

**Why nats-server's format.** An archive is what nats-server 2.15 writes (`nimsnats.protocol.archive`): documented,
ignorant of anybody's files, and it keeps sequences, times, headers and gaps; so a backup of one server restores into
the other, with every tool that exists for it. What it cannot say goes into a key of our own, `nimsnats`, which others
skip. Older servers write a tar of their block files; making sense of those would tie us to the innards of another
program, so they are refused with the way out (restore it into nats-server 2.15 and take a new backup).

**What is better here.** A snapshot is one moment: the messages, the positions of the consumers and the counts in
`state.json` are those after one entry of the stream's log, whatever is published, acknowledged and deleted while it is
sent. And a restore is all or nothing: the stream comes into being under its name when the archive has been read to its
end, is on disk and is entered in the catalogue; before that there is only a provisional group that a restart removes.
"""
