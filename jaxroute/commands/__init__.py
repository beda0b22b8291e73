"""The subcommands of `jaxroute`: options, what to run, what to print. One file each."""
