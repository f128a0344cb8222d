"""From C++ text to a loaded library: the machine, its compiler, the folder of what was made."""
