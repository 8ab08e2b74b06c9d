"""What carries the training loop of run_glue_no_trainer.py: reading files, guarding, saving, reporting, launching."""
