"""How fast the factored layers are, and what memory they take, beside dense and other compressed ones."""
