"""What every command shares at the terminal: flags and help, progress, Ctrl-C, and the line that names the next one."""
