"""What the validation looks at, one module per topic; `rehearsal/validation.py` lists it all."""
