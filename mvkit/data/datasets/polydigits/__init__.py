"""Five pictures of a digit, as a file, with the script that made it."""
