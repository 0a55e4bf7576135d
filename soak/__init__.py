"""Hard use of mumoe: kills, damaged files, bad calls, several processes, large data; not part of the wheel."""
