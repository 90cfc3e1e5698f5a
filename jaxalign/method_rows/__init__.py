"""The rows of the table of methods (`jaxalign.methods`), by family."""
