"""Commands for authors: what is wrong with an objective, and files to start from."""
