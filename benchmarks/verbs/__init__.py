"""Groups of verbs of the command line, above every room that they use."""
