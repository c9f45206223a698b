"""The ground of every room: optional imports, whole files, progress, processes, threads, pictures, suggestions."""
