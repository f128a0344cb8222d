"""What one call of a layer takes between the person's arguments and an engine; one idea a file."""
