"""What surrounds a worker's core in its process, on the owner's side.

Rules:

- Nothing here loads torch: a worker's parent starts in a fraction of a second.
- A file is read whole and checked whole, or refused by a ``FileError`` that says
  where the fault is and what to do: nothing is ever loaded by half.
- Values of the owner's data appear in one place only: an error that quotes the
  one cell at fault, on the owner's own console.
"""
