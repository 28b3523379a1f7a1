"""A trained scene in the browser: look, select, edit, save, film."""
