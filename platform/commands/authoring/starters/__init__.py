"""Files that `deft new` copies, each of which works as it is."""
