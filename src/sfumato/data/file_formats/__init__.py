"""The formats of files that optional packages read, each in a module of its own (`data/file_format`)."""
