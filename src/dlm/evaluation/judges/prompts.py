"""The judges' prompts. Cached verdicts are kept by the whole prompt: a changed text here asks again."""

LETTERS = ("A", "B")  # the candidate shown first, and the second
GRADES = ("1", "2", "3", "4", "5")

_PAIRWISE = """\
Two assistants, A and B, replied to the same request. Decide which reply serves the person who asked better.

Look at, in this order: whether it does what was asked, whether what it says is right, whether it reads as fluent and \
connected text. Words said again and again, sentences that break off and content nobody asked for count against a \
reply. Neither the length of a reply nor its place here is a merit.

[request]
{instruction}

[reply of A]
{first}

[reply of B]
{second}

[end]
Name the better reply with a single letter, A or B, and write nothing else."""

_GRADE = """\
Grade an assistant's reply to a request with a whole number from 1 to 5.

1: useless, off the request or unreadable
2: touches the request, with serious faults
3: usable, with clear faults or gaps
4: good, with small faults
5: does all that was asked, is right, and reads fluently

Words said again and again, sentences that break off and content nobody asked for lower the grade; length by itself \
does not raise it.

[request]
{instruction}

[reply]
{answer}

[end]
Write the grade as a single digit and nothing else."""


def pairwise_prompt(instruction: str, first: str, second: str) -> str:
    """The question which of two answers is better; the reply should be one of LETTERS."""
    return _PAIRWISE.format(instruction=instruction, first=first, second=second)


def grade_prompt(instruction: str, answer: str) -> str:
    """The question how good one answer is; the reply should be one of GRADES."""
    return _GRADE.format(instruction=instruction, answer=answer)
