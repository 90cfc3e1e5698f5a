"""One file per paper or recipe; its docstring names the paper, the launch line and what differs from the paper."""
