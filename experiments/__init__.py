"""Runnable kinds of training: each module puts pieces of jaxalign together for one kind."""
