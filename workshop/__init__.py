"""How mini was made and how everything is measured; not part of the installed package."""
