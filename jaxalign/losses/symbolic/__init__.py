"""Preference losses as statements of propositional logic (arXiv 2412.17696).

Four predictions may be true or false: a model deems the chosen, or the rejected, completion valid; and so does the
reference. A formula over them says what a good model does, and the loss is how improbable that is.

  syntax, structures   formulas and preference structures `P given C also A`, from and to text
  tables               truth tables, and the short formula of a table
  counting             log weighted model counting
  compilation          structure -> loss of pairs
  decompilation        tables, or a ratio of polynomials -> structure; reference forms
  lattice              entailment, cover edges, enumeration
  named                the losses that have names
  drawing              the lattice as SVG
"""
