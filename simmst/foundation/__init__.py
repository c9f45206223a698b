"""What every room stands on: optional imports, whole files, progress, worker processes, pictures, suggestions."""
