"""What `doctor` looks at, measures and advises: one idea a file."""
