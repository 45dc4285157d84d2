"""What runs from a shell: command line, run files, report, explorer, demo."""
