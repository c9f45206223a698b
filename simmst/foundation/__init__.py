"""What every room stands on: optional imports, whole files, progress, processes, threads, pictures, suggestions."""
