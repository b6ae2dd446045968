"""How fast the solvers are, and what error they reach, beside a plain reference."""
