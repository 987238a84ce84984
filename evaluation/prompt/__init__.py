"""`toto prompt`: a Toto that is prompted with examples of a task, drawn as frames (paper App. A.11)."""
