"""Side-by-side measurements of nimsnats and the Go nats-server on one machine, told as ratios.

Owns the load generators, the servers it starts, and the report. It imports nothing of `nimsnats`: both servers are
child processes that see nothing but bytes on loopback sockets. Run `python -m benchmarks --help`.

How it measures, so that the server is what is measured and not the client:

- load generators are separate processes with blocking sockets; they send pre-built buffers of many messages and count
  what comes back by bytes, by line feeds, or by one regular expression per read, never by parsing message by message;
- the servers are measured in turn (A B A B …) within one scenario, each number is a median over the rounds, and only
  ratios are quoted: absolute figures depend on the machine and stay in the JSON file;
- waits are taken by a process of its own that pings every node while another one floods it or asks for something heavy;
  they are told in milliseconds, never without the other server's in the same run, and bounded where a server stalls;
- dirty pages are flushed before each measurement, so that what one server left unsynced is not paid for by the next.
"""
