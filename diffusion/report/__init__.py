"""One page over many runs: what their folders hold, side by side, in a file that needs no other.

    folders.py     which folders are runs, and what one holds        logs.py         metrics.jsonl, thinned out
    pictures.py    grids of samples, as data in the page             plots.py        curves, as SVG in the page
    evaluations.py metrics, one table for each protocol              likelihoods.py  bits per dimension
    compare.py     configs side by side                              page.py         all of it, through page.html

What cannot be read becomes a `Note` in the page, and the rest goes on.
"""

from diffusion.report.page import make

__all__ = ["make"]
