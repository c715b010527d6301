"""Messages between clients and workers, and their bytes. Loads no torch."""
