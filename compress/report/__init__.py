"""One run, told to a person: a self-contained HTML file, and a few plain lines for the terminal.

Everything here is a pure function of the `RunRecord`: nothing is measured again, no clock and no network is
asked, so the same record always makes the same bytes. What the record does not hold is shown as "not
measured", never as zero.
"""

from compress.report.page import render, write_report
from compress.report.terminal import compare, summary

__all__ = ["compare", "render", "summary", "write_report"]
