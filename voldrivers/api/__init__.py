"""The faces over HTTP: the agent of a host, and the host that is reached through one."""
