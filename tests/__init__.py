"""One file a module, and what crosses modules: whole programs, faults, several processes, the shape of the code."""
