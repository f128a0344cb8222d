"""From a program to the stages of its loops: what runs where, and where everything lies."""
