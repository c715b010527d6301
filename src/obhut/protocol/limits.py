"""What a message may at most contain.

Rule: a limit bounds what one message can cost its receiver before the message
has been understood; what a session may hold is the worker's own limit.
"""

REQUESTS_PER_BATCH = 65_536
"""Requests in one batch."""

ARGUMENTS_PER_REQUEST = 256
"""Arguments of one operator, by position and by name."""

LIST_ELEMENTS = 65_536
"""Elements of one list among an operator's arguments."""

DIMENSIONS = 64
"""Dimensions of a tensor; PyTorch's own bound."""

HEADER_BYTES = 16 * 2**20
"""Bytes of one header; tensors travel beside it. As many requests as a batch holds,
with 250 bytes each. Decoded it takes many times that, and seconds to check."""

INLINE_BYTES = 4_096
"""Bytes of a tensor that travels inside the header."""

TEXT_CHARACTERS = 4_096
"""Characters of a name, a tag, a description or an error's text."""

TAGS = 256
"""Tags of one object, or in one search."""

RESULTS_PER_REQUEST = 65_536
"""Tensors that one operator may return; as many ids are set aside where the
number is not known beforehand."""

OBJECTS_PER_SESSION = 2**20
"""Objects that a session may name, failures and expected ones included."""

SESSIONS_PER_SENDER = 64
"""Sessions that one client may have open with one worker."""

LABELLED_PER_SESSION = 16_384
"""Objects of a session that may carry tags or a description."""

LABEL_CHARACTERS_PER_SESSION = 2**22
"""Characters of all tags and descriptions of a session together."""

POLICY_BYTES = 256 * 1024
"""Bytes of a policy that travels with a delivery."""

ANSWER_BYTES = HEADER_BYTES // 2
"""Bytes of the answers to one batch, frames apart; further ones are refused."""

PROGRAM_CHARACTERS = 4 * 2**20
"""Characters of a program's text."""

PROGRAMS_PER_SESSION = 256
"""Programs that a session may define."""

LOOPS_PER_PROGRAM = 1_024
"""Loops of a program, each of which may go through the rows many times."""

PARTS_PER_LOOP = 64
"""Things that a loop does to batches in turn."""

LINES_PER_RUN = 2**28
"""Lines of a program that one request may run, over all batches of all epochs. Those of
the smallest operators take half an hour."""

EPOCHS = 2**20
"""Times that one request may go through an owner's rows, in all its loops."""

STEPS = 2**20
"""Batches that one request may go through, if it says how many."""

HIDDEN_ROWS = 2**20
"""Rows that a data set may have whose number is hidden, and counts as having."""

PARTS_OF_ROWS = 64
"""Tensors of a data set that one run goes through."""

COLUMNS = 65_536
"""Columns of such a tensor that are asked for by name."""

STATE_TENSORS = 4_096
"""Tensors of one version of what stays at an owner."""

STATE_NAME_CHARACTERS = 200
"""Characters of the name of what stays at an owner."""
