"""How one manager keeps its agents, graphs and swarms stored as they are in memory.

A writer of an agent compares the agent with a record of what is stored, and carries out the one write that results. See
``repository.window`` for the words log, window, variant and place.
"""
