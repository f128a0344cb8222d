"""From a program to the stages of its loops: what runs where, and where everything lies.

What engines that generate code have in common. Nothing here knows a language or a machine.
"""
