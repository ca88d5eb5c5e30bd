"""Python plugins forked from one warm process, so that what they all import is imported once.

A *fork server* belongs to one host. It is started for the first plugin that asks for it, has imported what serves a
plugin and nothing of any plugin's own, and forks one process for each request. `host` is the host's side of it,
`server` the process, `messages` what they say to each other, which is data: nothing is unpickled or imported by name.

What holds for a plugin that is started by itself holds for a forked one:

- It leads its own session and process group; environment, working directory, limits, arguments and import path are
  those that were asked for; no descriptor but 0, 1 and 2 reaches it; signals are as an interpreter finds them.
- Its exit status is the one that it had: it stays a zombie, so that its id and group are nobody else's, until the host
  has the fork server reap it.
- Nothing of it outlives the host. Nor does anything outlive the fork server: to a plugin that is the parent process,
  whose end is the host's. Who kills the fork server ends its plugins, and the host sees them crash, with an exit status
  that nobody can tell; the next start makes another one.

The fork server has one thread and starts none, which is what makes forking safe, and no grpc core, which has its own.
It looks at nothing but its one socket: the host knows from a pidfd when a plugin has ended. So it is for Linux.

What a process takes from its start and no request can change, it has from the fork server's: the seed of hashes of
strings, user, umask and the like. An environment that asks for another interpreter than that, or a host that is another
one by now (see `host`), gets a process of its own.
"""
