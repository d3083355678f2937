"""The command line: one package per subcommand."""
