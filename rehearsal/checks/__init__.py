"""The checks of the validation, one module per topic; `rehearsal/validation.py` lists them all."""
