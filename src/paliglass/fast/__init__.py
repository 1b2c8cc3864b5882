"""What makes a model fast, put in the place of plain modules from outside."""
