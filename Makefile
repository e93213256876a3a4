# vhostkit: `make demo` and `make test` set up everything they need; `make help` lists the rest.
