"""One file per verb of the command line: a frozen dataclass of its options and `run(options)`."""
