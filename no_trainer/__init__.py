"""The modules behind run_glue_no_trainer.py: reading, checking, saving, reporting, launching."""
